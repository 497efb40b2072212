// Ctrl-C and its relatives: temporaries are removed, nothing half-written stays, and the process ends at once with 130 (128 + signal for
// SIGTERM and SIGHUP). Verbs need not poll anything: a file appears under its name only by AtomicFile::commit().
#pragma once

#include <string>

namespace tq4::cli {

/// Installs the handlers; main calls it first.
void install_interrupt_handlers();

/// A file to unlink on interruption beside AtomicFile's own (spooled standard input or output). At most one at a time; "" = none.
void set_interrupt_unlink(const std::string& path);

}  // namespace tq4::cli
