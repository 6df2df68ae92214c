/* A clock that a test can set: LD_PRELOAD it, and name by FAULT_CLOCK a file of one int64, the
 * seconds that every process which loads this adds to the wall clock. The monotonic clock, sleeps
 * and timeouts go on as they are, as they do when somebody sets the time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t none;
static volatile int64_t *ahead = &none;

__attribute__((constructor)) static void map_file(void) {
    int file = open(getenv("FAULT_CLOCK"), O_RDONLY | O_CLOEXEC);
    if (file < 0) abort();
    ahead = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (ahead == MAP_FAILED) abort();
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

/* The one wait of Python's that ends at a time of the wall clock (multiprocessing's). */
int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    struct timespec exact = {until->tv_sec - *ahead, until->tv_nsec};
    return sem_clockwait(semaphore, CLOCK_REALTIME, &exact);
}
