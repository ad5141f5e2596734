// Only in a wheel for every Linux (make wheel): what the ops would otherwise need a glibc newer than 2.28 for.

extern "C" {
// Whether the process has one thread, from glibc 2.32. std::shared_ptr counts without atomic instructions if so. This
// definition is linked in its place: "no", which is always safe.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
