// Makes pair_style segnn known to LAMMPS as a plugin. LAMMPS does not install lammpsplugin.h, so its struct is declared
// here.
#include "pair_segnn.h"

using namespace LAMMPS_NS;

extern "C" {
typedef struct {
  const char *version, *style, *name, *info, *author;
  union {
    void* (*v1)(void*);
    void* (*v2)(void*, int, char**);
  } creator;
  void* handle;
} lammpsplugin_t;
typedef void (*lammpsplugin_regfunc)(lammpsplugin_t*, void*);

static void* create(void* lmp) { return new PairSEGNN((LAMMPS*)lmp); }

__attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle, void* register_function) {
  lammpsplugin_t plugin = {};
  plugin.version = LAMMPS_VERSION_STRING;
  plugin.style = "pair";
  plugin.name = "segnn";
  plugin.info = "potentials of ase-segnn";
  plugin.author = "ase-segnn developers";
  plugin.creator.v1 = create;
  plugin.handle = handle;
  ((lammpsplugin_regfunc)register_function)(&plugin, lmp);
}
}
