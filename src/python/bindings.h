// The parts of the extension module tq4._core, one function a part.
#pragma once

#include <nanobind/nanobind.h>

#include "planes.h"

namespace tq4::python {

void bind_tables(nb::module_& m);     ///< specs, codebooks, rotations
void bind_codec(nb::module_& m);      ///< SideCodec
void bind_container(nb::module_& m);  ///< Container
void bind_pages(nb::module_& m);      ///< Pages: paged caches on the CPU
void bind_gpu(nb::module_& m);        ///< GpuPages: paged caches on CUDA tensors
void bind_gpu_codec(nb::module_& m);  ///< GpuCodec: vectors on CUDA tensors to planes and back

/// Throws tq4::Error (NoDevice) in a build without CUDA.
void need_cuda();

}  // namespace tq4::python
