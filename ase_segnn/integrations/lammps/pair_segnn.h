#ifdef PAIR_CLASS
// clang-format off
PairStyle(segnn,PairSEGNN);
// clang-format on
#else

#ifndef LMP_PAIR_SEGNN_H
#define LMP_PAIR_SEGNN_H

#include <memory>
#include <string>
#include <vector>

#include "pair.h"
#include "segnn.h"

namespace LAMMPS_NS {

class PairSEGNN : public Pair {
 public:
  explicit PairSEGNN(class LAMMPS* lmp);
  ~PairSEGNN() override;

  void compute(int eflag, int vflag) override;
  void settings(int n, char** arguments) override;
  void coeff(int n, char** arguments) override;
  void init_style() override;
  double init_one(int i, int j) override;
  double memory_usage() override;
  void* extract_peratom(const char* name, int& n_columns) override;

  int pack_forward_comm(int n, int* atoms, double* message, int, int*) override;
  void unpack_forward_comm(int n, int first, double* message) override;
  int pack_reverse_comm(int n, int first, double* message) override;
  void unpack_reverse_comm(int n, int* atoms, double* message) override;

 private:
  struct Library {  // of a potential
    void* handle = nullptr;
    const segnn_info* info = nullptr;
    int (*evaluate)(segnn_call*) = nullptr;
    const char* (*error_text)(int) = nullptr;
    segnn_call call = {};
    ~Library();
  };

  std::vector<std::unique_ptr<Library> > libraries;
  std::vector<int> number_of_type;  // atomic numbers, 0 where another pair style acts
  double cutoff = 0, energy_unit = 1;
  bool must_list = true;

  int n_atoms = 0, exchanges = 0;    // whether any process has ghosts with rows
  std::vector<int> members, row_of;  // row -> atom or ghost, and back; ghosts with rows come after the atoms
  std::vector<int64_t> numbers, centers, neighbors;
  std::vector<double> shifts;

  double energy = 0;
  std::vector<double> positions, energies, virials, deviations;
  std::vector<std::vector<double> > forces;  // of each library

  const segnn_rows* arrays = nullptr;  // those of an exchange: how many, and bytes and doubles of an atom
  int n_arrays = 0, bytes = 0, width = 0;
  std::vector<double> buffer;  // what ghosts get or give, all of them

  std::unique_ptr<Library> open(const std::string& file);
  int number_of(const char* element);
  void list_rows_and_pairs();
  void add_row(int i);
  void add_shift(int image, int owner);
  static int exchange(void* context, int to_owners, int n_arrays, const segnn_rows* arrays);
  template <class Use> void for_ghosts(Use use);
  void pack(int i, char* to) const;
  void evaluate(Library& library, std::vector<double>& result);
  void tally(int eflag, int vflag);
  void find_deviations();
};

}  // namespace LAMMPS_NS

#endif
#endif
