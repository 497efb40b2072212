// tq4._core, the extension module: registers its parts and turns C++ errors into the classes of tq4._errors. The package's Python modules are
// its only callers; what users see is in tq4/__init__.py.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "tq4/error.h"

namespace tq4::python {
namespace {

const char* class_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::Usage: return "UsageError";
    case ErrorCode::BadInput: return "BadInputError";
    case ErrorCode::NoDevice: return "NoDeviceError";
    case ErrorCode::Unsupported: return "UnsupportedError";
    case ErrorCode::Runtime:
    case ErrorCode::QualityGate:
    case ErrorCode::Interrupted: break;
  }
  return "OperationError";
}

void set_error(const char* name, const char* message) noexcept {
  try {
    PyErr_SetString(nb::module_::import_("tq4._errors").attr(name).ptr(), message);
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, message);
  }
}

}  // namespace
}  // namespace tq4::python

NB_MODULE(_core, m) {
  using namespace tq4::python;
  m.doc() = "The C++ core of tq4. Private: use the package.";
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Refusal& refusal) {
      set_error(refusal.name, refusal.message.c_str());
    } catch (const tq4::Error& error) {
      set_error(class_of(error.code()), error.what());
    }
  });
  bind_tables(m);
  bind_codec(m);
  bind_container(m);
  bind_pages(m);
  bind_gpu(m);
  bind_gpu_codec(m);
}
