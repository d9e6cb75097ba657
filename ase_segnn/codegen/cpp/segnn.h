/* A potential of ase-segnn as a library: energy, forces and stress of a structure. For programs in C99 or C++, linked
 * with one library or with several that each is loaded by dlopen with RTLD_LOCAL, since all have the same functions.
 *
 * Units are Å, eV, eV/Å and eV/Å^3. Arrays are contiguous, with the last index fastest. All memory belongs to the
 * caller; the library keeps none and allocates none. Any number of threads may call at the same time, each with a
 * `segnn_call` and a workspace of its own. A process that was forked by one with threads of OpenMP running has to use
 * one thread.
 */
#ifndef SEGNN_H
#define SEGNN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of what this header declares. A library and a program that differ in it do not fit. */
#define SEGNN_INTERFACE_VERSION 3

/* What `segnn_evaluate` returns. With anything but SEGNN_OK, no result was written. */
enum {
  SEGNN_OK = 0,
  SEGNN_NEEDS_ROOM = 1,        /* the workspace is too small; `workspace_size` says how large it has to be */
  SEGNN_WRONG_VERSION = 2,     /* `version` is not the library's */
  SEGNN_WRONG_SIZE = 3,        /* the number of atoms, ghosts, pairs or threads is out of range; shells do not fit */
  SEGNN_MISSING_ARRAY = 4,     /* an input or the workspace is NULL, or `exchange` where there are ghosts */
  SEGNN_PAIRS_NOT_SORTED = 5,  /* `centers` decrease somewhere */
  SEGNN_PAIR_OUT_OF_RANGE = 6, /* a center is no atom, or a neighbor neither an atom nor a ghost; or beyond a shell */
  SEGNN_UNKNOWN_ELEMENT = 7,   /* an atomic number is none of those in `segnn_info` */
  SEGNN_EXCHANGE_FAILED = 8    /* `exchange` did not return 0 */
};

#define SEGNN_MOST_THREADS 1024
#define SEGNN_MOST_PAIRS (INT64_C(1) << 40)

/* What the library holds. */
typedef struct segnn_info {
  const char* name;              /* of the potential */
  const char* fingerprint;       /* SHA-256 of the potential file, in hexadecimal; "" if there was no file */
  const char* made_by;           /* such as "ase-segnn 0.1.0" */
  const char* precision;         /* of the network, "float32" or "float64"; inputs and results are double in both */
  double cutoff;                 /* Å; pairs at this distance or farther apart are skipped */
  int64_t n_layers;              /* of the network */
  int64_t n_elements;            /* length of `atomic_numbers` */
  const int64_t* atomic_numbers; /* that the potential knows */
  int64_t most_exchanged;        /* bytes per atom of all arrays that one call of `exchange` gets, at most */
  int64_t reach;                 /* pairs to the farthest atoms that an atom feels, so up to reach * cutoff away */
  const char* const* symbols;    /* of the elements, such as "Si" */
} segnn_info;

/* An array of the library in an exchange: `width` numbers of `size` bytes per row. Rows of atoms come first, then those
 * of ghosts. */
typedef struct segnn_rows {
  void* numbers; /* float or double, as `size` says; aligned for them */
  int64_t width;
  int64_t size;
} segnn_rows;

/* Exchanges rows of some arrays between processes: copies rows of atoms to their ghosts, or, if `to_owners` is not 0,
 * adds rows of ghosts to those of their atoms. Returns 0 if all went well. It is called by the thread that called
 * `segnn_evaluate`, in all processes in the same order, as long as all want the same results: also a process without
 * atoms must not have NULL for them. */
typedef int (*segnn_exchange)(void* context, int to_owners, int n_arrays, const segnn_rows* arrays);

/* One structure, and where its results go. Set all of it to zero first. Pairs are ordered: if j is a neighbor of i,
 * then i is one of j, as another pair. Their vectors are positions[neighbor] + cell_shift * cell - positions[center]. A
 * list with pairs beyond the cutoff can be used until a pair that it lacks may have come within.
 *
 * Several processes may share a structure. Each has atoms, whose pairs it lists, and ghosts: their neighbors that
 * another process has. Ghosts follow the atoms in `positions`, `atomic_numbers` and `forces`. Energies and stresses are
 * those of the atoms of a process, to be summed over processes; forces on ghosts are to be added to those on their
 * atoms.
 *
 * Where nothing can be exchanged, a process may have copies of all atoms that its own ones feel. With `shells`, only the
 * energies of the first shells[0] atoms count, and results are those of these energies: `atom_energies` of others are 0.
 * Atoms are sorted by how many pairs they are away from the nearest of these, and shells[k] says how many are k pairs
 * away at most, for k up to the library's `reach`. Pairs of those in the last shell need not be listed. */
typedef struct segnn_call {
  int64_t version;               /* SEGNN_INTERFACE_VERSION */
  int64_t n_atoms;               /* 1 to INT32_MAX; with `exchange` from 0 on */
  int64_t n_pairs;               /* 0 to SEGNN_MOST_PAIRS */
  int64_t n_threads;             /* 1 to SEGNN_MOST_THREADS, which share the work; results may differ in rounding */
  const double* positions;       /* (n_atoms + n_ghosts, 3), Å */
  const double* cell;            /* (3, 3), Å, one vector per row; zeros for a structure without a cell */
  const int64_t* atomic_numbers; /* (n_atoms + n_ghosts,) */
  const int64_t* centers;        /* (n_pairs,), from 0 on, not decreasing */
  const int64_t* neighbors;      /* (n_pairs,), from 0 on */
  const double* cell_shifts;     /* (n_pairs, 3), whole numbers of cell vectors by which the neighbor is shifted */
  double* energy;                /* (1,), eV; NULL for this and all below: not wanted */
  double* atom_energies;         /* (n_atoms,), eV, with the sum `energy` */
  double* forces;                /* (n_atoms + n_ghosts, 3), eV/Å */
  double* stress;                /* (3, 3), eV/Å^3, positive under tension as in ASE; nan if the cell has no volume */
  double* atom_virials;          /* (n_atoms, 3, 3), eV; their sum over the volume is the stress, once made symmetric */
  void* workspace;               /* memory for the library to work in, with any contents; NULL at first */
  int64_t workspace_size;        /* of this memory, bytes; 0 at first */
  int64_t halo_rows;             /* kept by the library from call to call; 0 at first */
  int64_t n_ghosts;              /* with n_atoms at most INT32_MAX; 0 for a structure in one process */
  segnn_exchange exchange;       /* NULL for a structure in one process */
  void* context;                 /* what `exchange` is called with */
  const int64_t* shells;         /* (reach + 1,), the last of them n_atoms; NULL: all energies count */
} segnn_call;

/* Version of the interface that the library has; fits if it is SEGNN_INTERFACE_VERSION. */
int64_t segnn_interface_version(void);

/* What the library holds; lasts as long as the library. */
const segnn_info* segnn_get_info(void);

/* Computes what is wanted, and returns one of the codes above. Where there is too little room, call again with more;
 * the library asks for an eighth more than it needs, so this is rare once a structure has been evaluated:
 *
 *     while ((code = segnn_evaluate(&call)) == SEGNN_NEEDS_ROOM) {
 *       free(call.workspace);
 *       call.workspace = malloc(call.workspace_size);
 *     }
 */
int segnn_evaluate(segnn_call* call);

/* Bytes of workspace that a call of this size takes on one thread. Several threads take more, which `segnn_evaluate`
 * tells: the rows for sums at neighbors that belong to other threads, as many as there are such neighbors. So do
 * ghosts. */
int64_t segnn_workspace_size(int64_t n_atoms, int64_t n_pairs, int forces_or_stress);

/* What a code says, in English; lasts as long as the library. */
const char* segnn_error_text(int code);

#ifdef __cplusplus
}
#endif

#endif
