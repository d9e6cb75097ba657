// pair_style segnn for LAMMPS: potentials that were exported as libraries, see segnn.h.
//
//     pair_style segnn
//     pair_coeff * * model.so H C O          (several libraries are a committee; NULL for types of other styles)
//
// Compiled as a plugin by `ase-segnn lammps build`; with pair_segnn.h beside it also a part of LAMMPS.

#include "pair_segnn.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

bool is_library(const char* argument) {
  const size_t n = std::strlen(argument);
  return n > 3 && !std::strcmp(argument + n - 3, ".so");
}

int bytes_of(const segnn_rows& rows) { return (int)(rows.width * rows.size); }

void add_numbers(const segnn_rows& rows, void* to, const void* from) {
  for (int64_t k = 0; k < rows.width; ++k) {
    if (rows.size == sizeof(float))
      ((float*)to)[k] += ((const float*)from)[k];
    else
      ((double*)to)[k] += ((const double*)from)[k];
  }
}

}  // namespace

// ---- libraries

PairSEGNN::Library::~Library() {
  std::free(call.workspace);
  if (handle) dlclose(handle);
}

std::unique_ptr<PairSEGNN::Library> PairSEGNN::open(const std::string& file) {
  std::unique_ptr<Library> library(new Library);
  const std::string path = file.find('/') == std::string::npos ? "./" + file : file;
  library->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library->handle) error->all(FLERR, "pair_style segnn cannot open '{}': {}", file, dlerror());
  const auto version = (int64_t (*)())dlsym(library->handle, "segnn_interface_version");
  if (!version) error->all(FLERR, "'{}' is no library of a potential; make one with 'ase-segnn export'", file);
  if (version() != SEGNN_INTERFACE_VERSION)
    error->all(FLERR,
               "'{}' has version {} of the interface and pair_style segnn version {}; export the potential and build "
               "the pair style with the same release of ase-segnn",
               file, version(), SEGNN_INTERFACE_VERSION);
  library->info = ((const segnn_info* (*)())dlsym(library->handle, "segnn_get_info"))();
  library->evaluate = (int (*)(segnn_call*))dlsym(library->handle, "segnn_evaluate");
  library->error_text = (const char* (*)(int))dlsym(library->handle, "segnn_error_text");
  return library;
}

// ---- what LAMMPS asks

PairSEGNN::PairSEGNN(LAMMPS* lmp) : Pair(lmp) {
  single_enable = restartinfo = writedata = 0;
  one_coeff = manybody_flag = 1;
  no_virial_fdotr_compute = 1;  // forces on ghosts are not their whole force times where they are
  centroidstressflag = CENTROID_NOTAVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
}

PairSEGNN::~PairSEGNN() {
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

void PairSEGNN::settings(int n, char**) {
  if (n) error->all(FLERR, "pair_style segnn takes no arguments; libraries and elements are those of pair_coeff");
}

void PairSEGNN::coeff(int n, char** arguments) {
  const int n_types = atom->ntypes;
  int first = 2;
  while (first < n && is_library(arguments[first])) ++first;
  if (n < 3 || std::strcmp(arguments[0], "*") || std::strcmp(arguments[1], "*") || first == 2 || n - first != n_types)
    error->all(FLERR,
               "pair_coeff of segnn is '* *', the libraries, and an element or NULL for each of the {} types, such as "
               "'pair_coeff * * model.so{}'",
               n_types, n_types == 1 ? " Si" : " H C O");
  libraries.clear();
  for (int k = 2; k < first; ++k) libraries.push_back(open(arguments[k]));
  if (!allocated) {
    memory->create(setflag, n_types + 1, n_types + 1, "pair:setflag");
    memory->create(cutsq, n_types + 1, n_types + 1, "pair:cutsq");
    allocated = 1;
  }
  number_of_type.assign(n_types + 1, 0);
  for (int type = 1; type <= n_types; ++type) number_of_type[type] = number_of(arguments[first + type - 1]);
  for (int i = 1; i <= n_types; ++i)
    for (int j = 1; j <= n_types; ++j) setflag[i][j] = number_of_type[i] && number_of_type[j];
  cutoff = 0;
  comm_forward = 0;
  for (const auto& library : libraries) {
    cutoff = std::max(cutoff, library->info->cutoff);
    comm_forward = std::max(comm_forward, (int)((library->info->most_exchanged + 7) / 8));
  }
  comm_reverse = comm_forward = std::max(comm_forward, 3);  // at least the forces of members of a committee
}

// Returns the atomic number of an element, 0 for NULL.
int PairSEGNN::number_of(const char* element) {
  if (!std::strcmp(element, "NULL")) return 0;
  int number = 0;
  for (const auto& library : libraries) {
    const segnn_info& info = *library->info;
    std::string known;
    number = 0;
    for (int64_t k = 0; k < info.n_elements; ++k) {
      if (!std::strcmp(info.symbols[k], element)) number = (int)info.atomic_numbers[k];
      known += std::string(" ") + info.symbols[k];
    }
    if (!number) error->all(FLERR, "the potential '{}' does not know '{}'; it knows{}", info.name, element, known);
  }
  return number;
}

void PairSEGNN::init_style() {
  if (!force->newton_pair) error->all(FLERR, "pair_style segnn needs 'newton on'");
  if (!std::strcmp(update->unit_style, "metal"))
    energy_unit = 1;
  else if (!std::strcmp(update->unit_style, "real"))
    energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style segnn needs 'units metal' or 'units real', got '{}'", update->unit_style);
  for (int k = 1; k < 4; ++k)
    if (atom->molecular && force->special_lj[k] == 0 && force->special_coul[k] == 0)
      error->all(FLERR, "pair_style segnn needs all pairs, also of bonded atoms; add 'special_bonds lj/coul 1 1 1'");
  if (neighbor->exclude_setting() && comm->me == 0)
    error->warning(FLERR, "'neigh_modify exclude' takes pairs away from pair_style segnn");
  // pair_style hybrid asks for the sizes of messages before libraries are known
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
  neighbor->add_request(this, NeighConst::REQ_FULL);
  must_list = true;
}

double PairSEGNN::init_one(int i, int j) {
  if (!setflag[i][j]) error->all(FLERR, "pair_style segnn has no element for types {} and {}", i, j);
  return cutoff;
}

double PairSEGNN::memory_usage() {
  double bytes = Pair::memory_usage();
  for (const auto& library : libraries) bytes += (double)library->call.workspace_size;
  bytes += 8.0 * (centers.capacity() + neighbors.capacity() + shifts.capacity() + buffer.capacity());
  return bytes + 8.0 * (positions.capacity() + energies.capacity() + forces.capacity() + virials.capacity());
}

void* PairSEGNN::extract_peratom(const char* name, int& n_columns) {
  n_columns = 0;
  return libraries.size() > 1 && !std::strcmp(name, "deviation") ? deviations.data() : nullptr;
}

// ---- pairs, listed when LAMMPS lists neighbors

// Gives each atom with an element a row, then each of their neighbors that is not an image of such an atom.
void PairSEGNN::list_rows_and_pairs() {
  const int n_local = atom->nlocal, n_all = n_local + atom->nghost;
  const bool has_map = atom->tag_enable && atom->map_style != Atom::MAP_NONE;
  row_of.assign(n_all, -1);
  members.clear();
  for (int i = 0; i < n_local; ++i)
    if (number_of_type[atom->type[i]]) add_row(i);
  n_atoms = (int)members.size();
  std::vector<int> order(list->ilist, list->ilist + list->inum);
  std::sort(order.begin(), order.end());
  centers.clear();
  neighbors.clear();
  shifts.clear();
  double** x = atom->x;
  const double reach = (cutoff + neighbor->skin) * (cutoff + neighbor->skin);
  for (const int i : order) {
    if (row_of[i] < 0) continue;
    for (int k = 0; k < list->numneigh[i]; ++k) {
      const int j = list->firstneigh[i][k] & NEIGHMASK;
      const double d[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      if (!number_of_type[atom->type[j]] || d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= reach) continue;
      int owner = j;
      if (j >= n_local && has_map) {
        const int own = atom->map(atom->tag[j]);
        if (own >= 0 && own < n_local) owner = own;
      }
      if (row_of[owner] < 0) add_row(owner);
      centers.push_back(row_of[i]);
      neighbors.push_back(row_of[owner]);
      add_shift(j, owner);
    }
  }
  numbers.resize(members.size());
  for (size_t row = 0; row < members.size(); ++row) numbers[row] = number_of_type[atom->type[members[row]]];
  // without ghosts of other processes there is nothing to exchange, as long as no process has any
  int mine = (int)members.size() > n_atoms, any = 0;
  MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
  exchanges = any;
}

void PairSEGNN::add_row(int i) {
  row_of[i] = (int)members.size();
  members.push_back(i);
}

// Adds the whole cell vectors from an atom to its image, which stay the same while the cell changes.
void PairSEGNN::add_shift(int image, int owner) {
  double s[3] = {0, 0, 0};
  if (image != owner) {
    double d[3];
    for (int k = 0; k < 3; ++k) d[k] = atom->x[image][k] - atom->x[owner][k];
    s[2] = std::round(d[2] / domain->zprd);
    s[1] = std::round((d[1] - s[2] * domain->yz) / domain->yprd);
    s[0] = std::round((d[0] - s[2] * domain->xz - s[1] * domain->xy) / domain->xprd);
  }
  shifts.insert(shifts.end(), s, s + 3);
}

// ---- rows exchanged between processes

// LAMMPS hands rows on from ghost to ghost, so that those of all ghosts have to be kept, also of ghosts that are no
// one's neighbors here.
int PairSEGNN::exchange(void* context, int to_owners, int n_arrays, const segnn_rows* arrays) {
  PairSEGNN& pair = *(PairSEGNN*)context;
  pair.arrays = arrays;
  pair.n_arrays = n_arrays;
  pair.bytes = 0;
  for (int k = 0; k < n_arrays; ++k) pair.bytes += bytes_of(arrays[k]);
  pair.width = (pair.bytes + 7) / 8;
  pair.buffer.assign((size_t)pair.width * pair.atom->nghost, 0);
  if (to_owners) {
    pair.for_ghosts(
        [](char* kept, char* numbers, const segnn_rows& rows) { std::memcpy(kept, numbers, bytes_of(rows)); });
    pair.comm->reverse_comm(&pair, pair.width);
  } else {
    pair.comm->forward_comm(&pair, pair.width);
    pair.for_ghosts(
        [](char* kept, char* numbers, const segnn_rows& rows) { std::memcpy(numbers, kept, bytes_of(rows)); });
  }
  return 0;
}

// Calls a function with what is kept of each ghost that has a row, and that row, one array after another.
template <class Use> void PairSEGNN::for_ghosts(Use use) {
  for (size_t row = n_atoms; row < members.size(); ++row) {
    char* kept = (char*)(buffer.data() + (size_t)width * (members[row] - atom->nlocal));
    for (int k = 0; k < n_arrays; ++k) {
      use(kept, (char*)arrays[k].numbers + row * bytes_of(arrays[k]), arrays[k]);
      kept += bytes_of(arrays[k]);
    }
  }
}

// Puts the numbers of an atom or a ghost into a message.
void PairSEGNN::pack(int i, char* to) const {
  if (i >= atom->nlocal) {
    std::memcpy(to, buffer.data() + (size_t)width * (i - atom->nlocal), bytes);
    return;
  }
  const int row = row_of[i];
  for (int k = 0; k < n_arrays; ++k) {
    const int n = bytes_of(arrays[k]);
    if (row < 0)
      std::memset(to, 0, n);
    else
      std::memcpy(to, (const char*)arrays[k].numbers + (size_t)row * n, n);
    to += n;
  }
}

int PairSEGNN::pack_forward_comm(int n, int* atoms, double* message, int, int*) {
  for (int i = 0; i < n; ++i) pack(atoms[i], (char*)(message + (size_t)i * width));
  return n * width;
}

void PairSEGNN::unpack_forward_comm(int n, int first, double* message) {
  std::memcpy(buffer.data() + (size_t)width * (first - atom->nlocal), message, sizeof(double) * width * n);
}

int PairSEGNN::pack_reverse_comm(int n, int first, double* message) {
  std::memcpy(message, buffer.data() + (size_t)width * (first - atom->nlocal), sizeof(double) * width * n);
  return n * width;
}

void PairSEGNN::unpack_reverse_comm(int n, int* atoms, double* message) {
  for (int i = 0; i < n; ++i) {
    const bool is_ghost = atoms[i] >= atom->nlocal;
    if (!is_ghost && row_of[atoms[i]] < 0) continue;
    const char* from = (const char*)(message + (size_t)i * width);
    char* kept = is_ghost ? (char*)(buffer.data() + (size_t)width * (atoms[i] - atom->nlocal)) : nullptr;
    for (int k = 0; k < n_arrays; ++k) {
      const int step = bytes_of(arrays[k]);
      add_numbers(arrays[k], is_ghost ? kept : (char*)arrays[k].numbers + (size_t)row_of[atoms[i]] * step, from);
      from += step;
      kept += is_ghost ? step : 0;
    }
  }
}

// ---- energies and forces

void PairSEGNN::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  if (neighbor->ago == 0 || must_list) list_rows_and_pairs();
  must_list = false;
  positions.resize(3 * members.size());
  for (size_t row = 0; row < members.size(); ++row) std::copy_n(atom->x[members[row]], 3, positions.data() + 3 * row);
  // one more, since a library takes NULL for a result that is not wanted, and all processes have to want the same
  energies.resize(n_atoms + 1);
  virials.resize(9 * (size_t)n_atoms + 1);
  forces.resize(libraries.size());
  for (size_t k = 0; k < libraries.size(); ++k) {
    forces[k].resize(3 * members.size() + 1);
    evaluate(*libraries[k], forces[k]);
    tally(eflag, vflag);
  }
  if (libraries.size() > 1) find_deviations();
  const double factor = energy_unit / libraries.size();
  for (const auto& member : forces)
    for (size_t row = 0; row < members.size(); ++row)
      for (int k = 0; k < 3; ++k) atom->f[members[row]][k] += factor * member[3 * row + k];
}

void PairSEGNN::evaluate(Library& library, std::vector<double>& result) {
  const double cell[9] = {domain->xprd, 0, 0, domain->xy, domain->yprd, 0, domain->xz, domain->yz, domain->zprd};
  segnn_call& call = library.call;
  call.version = SEGNN_INTERFACE_VERSION;
  call.n_atoms = n_atoms;
  call.n_ghosts = (int64_t)members.size() - n_atoms;
  call.n_pairs = (int64_t)centers.size();
  call.n_threads = std::max(1, std::min(comm->nthreads, n_atoms / 32));
  call.positions = positions.data();
  call.cell = cell;
  call.atomic_numbers = numbers.data();
  call.centers = centers.data();
  call.neighbors = neighbors.data();
  call.cell_shifts = shifts.data();
  call.energy = &energy;
  call.atom_energies = energies.data();
  call.forces = result.data();
  call.stress = nullptr;
  call.atom_virials = virials.data();
  call.exchange = exchanges ? exchange : nullptr;
  call.context = this;
  energy = 0;
  if (!exchanges && n_atoms == 0) return;
  int code;
  while ((code = library.evaluate(&call)) == SEGNN_NEEDS_ROOM) {
    std::free(call.workspace);
    call.workspace = std::malloc((size_t)call.workspace_size);
    if (!call.workspace) error->one(FLERR, "pair_style segnn cannot have {} bytes of memory", call.workspace_size);
  }
  if (code) error->one(FLERR, "pair_style segnn: {}", library.error_text(code));
}

// Adds energies and virials of the last evaluation. A virial is minus the stress of ASE times the volume.
void PairSEGNN::tally(int, int) {
  const double factor = energy_unit / libraries.size();
  if (eflag_global) eng_vdwl += factor * energy;
  for (int row = 0; row < n_atoms; ++row) {
    const int i = members[row];
    const double* w = virials.data() + 9 * (size_t)row;
    const double v[6] = {w[0], w[4], w[8], (w[1] + w[3]) / 2, (w[2] + w[6]) / 2, (w[5] + w[7]) / 2};
    if (eflag_atom) eatom[i] += factor * energies[row];
    if (vflag_global)
      for (int k = 0; k < 6; ++k) virial[k] -= factor * v[k];
    if (vflag_atom)
      for (int k = 0; k < 6; ++k) vatom[i][k] -= factor * v[k];
  }
}

// Adds forces on ghosts to their atoms, and finds how much the members of a committee differ: the square root of the
// variance over members, summed over the three components.
void PairSEGNN::find_deviations() {
  const double n = (double)libraries.size();
  for (auto& member : forces) {
    const segnn_rows rows = {member.data(), 3, sizeof(double)};
    if (exchanges) exchange(this, 1, 1, &rows);
    std::fill(member.begin() + 3 * (size_t)n_atoms, member.end(), 0.0);
  }
  deviations.assign(atom->nmax, 0.0);
  for (int row = 0; row < n_atoms; ++row) {
    double squares = 0;
    for (int k = 0; k < 3; ++k) {
      double mean = 0;
      for (const auto& member : forces) mean += member[3 * (size_t)row + k] / n;
      for (const auto& member : forces) squares += std::pow(member[3 * (size_t)row + k] - mean, 2) / (n - 1);
    }
    deviations[members[row]] = energy_unit * std::sqrt(squares);
  }
}
