/* Energy, forces and stress of a silicon crystal, by any potential that knows silicon:
 *
 *     ase-segnn export si-pbe --output model.so
 *     cc crystal.c ./model.so -lm -o crystal
 *     ./crystal 2         (threads)
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

int main(int argc, char** argv) {
  const double a = 5.43, cell[9] = {a, 0, 0, 0, a, 0, 0, 0, a};
  const int sites[8][3] = {{0, 0, 0}, {0, 2, 2}, {2, 0, 2}, {2, 2, 0}, {1, 1, 1}, {1, 3, 3}, {3, 1, 3}, {3, 3, 1}};
  double x[8][3], energy, forces[8][3], stress[9];
  int64_t numbers[8];
  for (int i = 0; i < 8; ++i) {
    numbers[i] = 14;
    for (int k = 0; k < 3; ++k) x[i][k] = a / 4 * sites[i][k] + 0.1 * sin(3 * i + k); /* or no forces */
  }

  const double cutoff = segnn_get_info()->cutoff;
  const int reach = (int)(cutoff / a) + 1, width = 2 * reach + 1; /* neighbors are at most so many cells away */
  const size_t most = 8 * 8 * (size_t)(width * width * width);
  int64_t *centers = malloc(most * sizeof *centers), *neighbors = malloc(most * sizeof *neighbors), n = 0;
  double(*shifts)[3] = malloc(most * sizeof *shifts);
  for (int i = 0; i < 8; ++i) {
    for (int k = 0; k < 8 * width * width * width; ++k) {
      const int image = k / 8, j = k % 8;
      const int s[3] = {image % width - reach, image / width % width - reach, image / width / width - reach};
      double squared = 0;
      for (int m = 0; m < 3; ++m) squared += pow(x[j][m] + s[m] * a - x[i][m], 2);
      if (squared == 0 || squared >= cutoff * cutoff) continue;
      for (int m = 0; m < 3; ++m) shifts[n][m] = s[m];
      centers[n] = i;
      neighbors[n++] = j;
    }
  }

  segnn_call call = {SEGNN_INTERFACE_VERSION, 8, n, argc > 1 ? atoi(argv[1]) : 1, x[0], cell, numbers, centers, neighbors,
                     shifts[0], &energy, NULL, forces[0], stress, NULL, NULL, 0, 0, 0, NULL, NULL, NULL};
  int code;
  while ((code = segnn_evaluate(&call)) == SEGNN_NEEDS_ROOM) {
    free(call.workspace);
    call.workspace = malloc((size_t)call.workspace_size);
  }
  if (code != SEGNN_OK) return fprintf(stderr, "%s\n", segnn_error_text(code)), 1;
  printf("energy %.17g eV\n", energy);
  for (int i = 0; i < 8; ++i) printf("force %.17g %.17g %.17g eV/A\n", forces[i][0], forces[i][1], forces[i][2]);
  for (int k = 0; k < 9; k += 3) printf("stress %.17g %.17g %.17g eV/A^3\n", stress[k], stress[k + 1], stress[k + 2]);
  return 0;
}
