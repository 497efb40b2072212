// See interrupt.h. Everything in the handler is async-signal-safe: unlink, write, _exit.
#include "interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "tq4/container.h"

namespace tq4::cli {
namespace {

char g_unlink[PATH_MAX] = "";
volatile sig_atomic_t g_unlink_set = 0;

extern "C" void on_signal(int number) {
  AtomicFile::remove_all_temporaries();
  if (g_unlink_set != 0) ::unlink(g_unlink);
  static constexpr char kText[] = "\ntq4: interrupted; nothing was left half-written\n";
  if (number == SIGINT && ::write(STDERR_FILENO, kText, sizeof(kText) - 1) < 0) {
    // Nowhere to say it; the exit status does.
  }
  ::_exit(128 + number);
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigfillset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    struct sigaction old {};
    // A parent that ignores a signal (nohup) keeps it ignored.
    if (sigaction(number, nullptr, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(number, &action, nullptr);
  }
  // RLIMIT_FSIZE: write() then fails with EFBIG and the error is reported like a full disk.
  ::signal(SIGXFSZ, SIG_IGN);
}

void set_interrupt_unlink(const std::string& path) {
  g_unlink_set = 0;
  if (path.empty() || path.size() >= sizeof(g_unlink)) return;
  std::memcpy(g_unlink, path.c_str(), path.size() + 1);
  g_unlink_set = 1;
}

}  // namespace tq4::cli
