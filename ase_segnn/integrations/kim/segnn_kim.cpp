// A portable model of the KIM API from an exported potential, see segnn.h. The library of the potential, whose path is
// SEGNN_LIBRARY, becomes a part of the model.
//
// Programs give a model particles that contribute to the energy, and copies of all others that these feel, without
// telling which are copies of the same atom. So features of copies are computed again, in shells, see `segnn_call`.

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "KIM_LogMacros.hpp"
#include "KIM_ModelHeaders.hpp"
#include "segnn.h"

asm(R"(
.pushsection .rodata
segnn_library_start:
.incbin ")" SEGNN_LIBRARY R"("
segnn_library_end:
.popsection
.pushsection .note.GNU-stack
.popsection
)");
extern "C" const char segnn_library_start[] __attribute__((visibility("hidden")));
extern "C" const char segnn_library_end[] __attribute__((visibility("hidden")));

namespace {

// The library, opened once per model. Its file stays open as long as it is loaded, since one that is opened by a name
// that another loaded one has would be taken for that.
struct Model {
  int file = -1;
  std::string path;
  void* handle = nullptr;
  const segnn_info* info = nullptr;
  int (*evaluate)(segnn_call*) = nullptr;
  const char* (*error_text)(int) = nullptr;
  double reach = 0, cutoff = 0;  // Å
  int asks_for_few_lists = 0;    // KIM: 1 if only neighbors of particles that contribute are asked for

  // Returns what went wrong, "" for nothing.
  std::string open() {
    file = memfd_create("model.so", MFD_CLOEXEC);
    if (file < 0) return "cannot make a file in memory";
    for (const char* at = segnn_library_start; at < segnn_library_end;) {
      const ssize_t n = write(file, at, (size_t)(segnn_library_end - at));
      if (n < 0) return "cannot write a file in memory";
      at += n;
    }
    path = "/proc/self/fd/" + std::to_string(file);
    handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) return std::string("cannot open the library of the potential: ") + dlerror();
    const auto version = (int64_t (*)())dlsym(handle, "segnn_interface_version");
    if (!version || version() != SEGNN_INTERFACE_VERSION) return "model.so is of another version of ase-segnn";
    info = ((const segnn_info* (*)())dlsym(handle, "segnn_get_info"))();
    evaluate = (int (*)(segnn_call*))dlsym(handle, "segnn_evaluate");
    error_text = (const char* (*)(int))dlsym(handle, "segnn_error_text");
    cutoff = info->cutoff;
    reach = (double)info->reach * info->cutoff;
    return "";
  }
  ~Model() {
    if (handle) dlclose(handle);
    if (file >= 0 && !dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD)) close(file);
  }
};

// Memory that stays from call to call, one for each set of arguments, which different threads may have.
struct Memory {
  std::vector<int> row_of;     // of each particle, -1 for those that nothing feels
  std::vector<int> particles;  // by row: those that contribute, then shell by shell
  std::vector<int64_t> numbers, centers, neighbors, shells;
  std::vector<double> positions, shifts, energies, forces, virials;
  void* workspace = nullptr;
  int64_t workspace_size = 0, halo_rows = 0;
  ~Memory() { std::free(workspace); }

  void add(int particle) {
    row_of[particle] = (int)particles.size();
    particles.push_back(particle);
  }
};

// What KIM hands over for a computation; results are null where they are not wanted.
struct Arguments {
  const int *n = nullptr, *species = nullptr, *contributing = nullptr;
  const double* x = nullptr;
  double *energy = nullptr, *forces = nullptr, *energies = nullptr, *virial = nullptr, *virials = nullptr;
};

// Puts particles into shells by pairs within the cutoff. Returns whether KIM gave all lists of neighbors.
bool list_shells(const KIM::ModelComputeArguments* of, const Arguments& given, const Model& model, Memory& memory) {
  const int n = *given.n;
  memory.row_of.assign(n, -1);
  memory.particles.clear();
  memory.shells.clear();
  memory.centers.clear();
  memory.neighbors.clear();
  for (int i = 0; i < n; ++i)
    if (given.contributing[i]) memory.add(i);
  memory.shells.push_back((int64_t)memory.particles.size());
  size_t row = 0;
  for (int64_t shell = 0; shell < model.info->reach; ++shell) {
    const size_t end = memory.particles.size();
    for (; row < end; ++row) {
      const int i = memory.particles[row];
      int n_near;
      const int* near;
      if (of->GetNeighborList(0, i, &n_near, &near)) return false;
      for (int k = 0; k < n_near; ++k) {
        const double *a = given.x + 3 * (size_t)i, *b = given.x + 3 * (size_t)near[k];
        const double d[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
        if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= model.cutoff * model.cutoff) continue;
        if (memory.row_of[near[k]] < 0) memory.add(near[k]);
        memory.centers.push_back((int64_t)row);
        memory.neighbors.push_back(memory.row_of[near[k]]);
      }
    }
    memory.shells.push_back((int64_t)memory.particles.size());
  }
  return true;
}

int evaluate(const Model& model, const Arguments& given, Memory& memory) {
  const size_t n = memory.particles.size();
  memory.positions.resize(3 * n);
  memory.numbers.resize(n);
  for (size_t row = 0; row < n; ++row) {
    std::copy_n(given.x + 3 * (size_t)memory.particles[row], 3, memory.positions.data() + 3 * row);
    memory.numbers[row] = model.info->atomic_numbers[given.species[memory.particles[row]]];
  }
  memory.shifts.assign(3 * memory.centers.size(), 0.0);
  memory.energies.resize(n);
  memory.forces.resize(3 * n);
  memory.virials.resize(9 * n);
  const double no_cell[9] = {};
  double energy = 0;
  segnn_call call = {};
  call.version = SEGNN_INTERFACE_VERSION;
  call.n_atoms = (int64_t)n;
  call.n_pairs = (int64_t)memory.centers.size();
  call.n_threads = 1;
  call.positions = memory.positions.data();
  call.cell = no_cell;
  call.atomic_numbers = memory.numbers.data();
  call.centers = memory.centers.data();
  call.neighbors = memory.neighbors.data();
  call.cell_shifts = memory.shifts.data();
  call.energy = &energy;
  call.atom_energies = memory.energies.data();
  if (given.forces) call.forces = memory.forces.data();
  if (given.virial || given.virials) call.atom_virials = memory.virials.data();
  call.workspace = memory.workspace;
  call.workspace_size = memory.workspace_size;
  call.halo_rows = memory.halo_rows;
  call.shells = memory.shells.data();
  int code;
  while ((code = model.evaluate(&call)) == SEGNN_NEEDS_ROOM) {
    std::free(memory.workspace);
    memory.workspace = call.workspace = std::malloc((size_t)call.workspace_size);
    memory.workspace_size = memory.workspace ? call.workspace_size : 0;
    if (!memory.workspace) return SEGNN_NEEDS_ROOM;
  }
  memory.halo_rows = call.halo_rows;
  if (!code && given.energy) *given.energy = energy;
  return code;
}

// A virial of KIM has the components xx, yy, zz, yz, xz, xy.
void add_virial(const double* w, double* to) {
  const double v[6] = {w[0], w[4], w[8], (w[5] + w[7]) / 2, (w[2] + w[6]) / 2, (w[1] + w[3]) / 2};
  for (int k = 0; k < 6; ++k) to[k] += v[k];
}

void hand_over(const Arguments& given, const Memory& memory) {
  const size_t n = *given.n;
  if (given.forces) std::fill_n(given.forces, 3 * n, 0.0);
  if (given.energies) std::fill_n(given.energies, n, 0.0);
  if (given.virial) std::fill_n(given.virial, 6, 0.0);
  if (given.virials) std::fill_n(given.virials, 6 * n, 0.0);
  for (size_t row = 0; row < memory.particles.size(); ++row) {
    const size_t i = memory.particles[row];
    if (given.forces) std::copy_n(memory.forces.data() + 3 * row, 3, given.forces + 3 * i);
    if (given.energies) given.energies[i] = memory.energies[row];
    if (given.virial) add_virial(memory.virials.data() + 9 * row, given.virial);
    if (given.virials) add_virial(memory.virials.data() + 9 * row, given.virials + 6 * i);
  }
}

// ---- what KIM calls; each returns whether something went wrong

#define KIM_LOGGER_OBJECT_NAME of
int compute(const KIM::ModelCompute* of, const KIM::ModelComputeArguments* arguments) {
  Model* model;
  Memory* memory;
  of->GetModelBufferPointer((void**)&model);
  arguments->GetModelBufferPointer((void**)&memory);
  Arguments given;
  using namespace KIM::COMPUTE_ARGUMENT_NAME;
  if (arguments->GetArgumentPointer(numberOfParticles, &given.n) ||
      arguments->GetArgumentPointer(particleSpeciesCodes, &given.species) ||
      arguments->GetArgumentPointer(particleContributing, &given.contributing) ||
      arguments->GetArgumentPointer(coordinates, &given.x) ||
      arguments->GetArgumentPointer(partialEnergy, &given.energy) ||
      arguments->GetArgumentPointer(partialForces, &given.forces) ||
      arguments->GetArgumentPointer(partialParticleEnergy, &given.energies) ||
      arguments->GetArgumentPointer(partialVirial, &given.virial) ||
      arguments->GetArgumentPointer(partialParticleVirial, &given.virials)) {
    LOG_ERROR("KIM does not tell its arguments");
    return true;
  }
  for (int i = 0; i < *given.n; ++i)
    if (given.species[i] < 0 || given.species[i] >= model->info->n_elements) {
      LOG_ERROR("a particle has a species code that the model does not have");
      return true;
    }
  if (!list_shells(arguments, given, *model, *memory)) {
    LOG_ERROR("KIM does not tell the neighbors of a particle");
    return true;
  }
  if (given.energy) *given.energy = 0;
  if (!memory->particles.empty()) {
    const int code = evaluate(*model, given, *memory);
    if (code) {
      LOG_ERROR(model->error_text(code));
      return true;
    }
  }
  hand_over(given, *memory);
  return false;
}

int destroy(KIM::ModelDestroy* of) {
  Model* model;
  of->GetModelBufferPointer((void**)&model);
  delete model;
  return false;
}

int create_arguments(const KIM::ModelCompute*, KIM::ModelComputeArgumentsCreate* of) {
  using namespace KIM::COMPUTE_ARGUMENT_NAME;
  const KIM::ComputeArgumentName names[] = {partialEnergy, partialForces, partialParticleEnergy, partialVirial,
                                            partialParticleVirial};
  for (const auto& name : names)
    if (of->SetArgumentSupportStatus(name, KIM::SUPPORT_STATUS::optional)) return true;
  of->SetModelBufferPointer(new Memory);
  return false;
}

int destroy_arguments(const KIM::ModelCompute*, KIM::ModelComputeArgumentsDestroy* of) {
  Memory* memory;
  of->GetModelBufferPointer((void**)&memory);
  delete memory;
  return false;
}

}  // namespace

extern "C" int segnn_create(KIM::ModelCreate* of, KIM::LengthUnit, KIM::EnergyUnit, KIM::ChargeUnit,
                            KIM::TemperatureUnit, KIM::TimeUnit) {
  Model* model = new Model;
  const std::string wrong = model->open();
  if (!wrong.empty()) {
    LOG_ERROR(wrong);
    delete model;
    return true;
  }
  int failed = of->SetModelNumbering(KIM::NUMBERING::zeroBased);
  failed |= of->SetUnits(KIM::LENGTH_UNIT::A, KIM::ENERGY_UNIT::eV, KIM::CHARGE_UNIT::unused,
                         KIM::TEMPERATURE_UNIT::unused, KIM::TIME_UNIT::unused);
  for (int64_t k = 0; k < model->info->n_elements; ++k)
    failed |= of->SetSpeciesCode(KIM::SpeciesName(model->info->symbols[k]), (int)k);
  using namespace KIM::MODEL_ROUTINE_NAME;
  const KIM::LanguageName cpp = KIM::LANGUAGE_NAME::cpp;
  failed |= of->SetRoutinePointer(Compute, cpp, true, (KIM::Function*)compute);
  failed |= of->SetRoutinePointer(ComputeArgumentsCreate, cpp, true, (KIM::Function*)create_arguments);
  failed |= of->SetRoutinePointer(ComputeArgumentsDestroy, cpp, true, (KIM::Function*)destroy_arguments);
  failed |= of->SetRoutinePointer(Destroy, cpp, true, (KIM::Function*)destroy);
  if (failed) {
    LOG_ERROR("KIM does not take the model");
    delete model;
    return true;
  }
  of->SetInfluenceDistancePointer(&model->reach);
  of->SetNeighborListPointers(1, &model->cutoff, &model->asks_for_few_lists);
  of->SetModelBufferPointer(model);
  return false;
}
