/* SPDX-License-Identifier: MIT */
#include "futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Older kernel headers lack these; the numbers are the same on every architecture. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define WAITV_U32 2u /* FUTEX2_SIZE_U32: a shared 32-bit futex */

struct waitv { /* struct futex_waitv of the kernel's ABI, futex2.h */
	uint64_t value, address;
	uint32_t flags, reserved;
};
_Static_assert(sizeof(struct waitv) == 24, "kernel ABI");

/* 0 unknown, 1 there, 2 not there (ENOSYS, or EPERM from an old seccomp profile). */
static atomic_int waitv_works;

#define POLL_NS 20000000 /* recovery.md section 4: median 8.1 ms to see a death */

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t futex_now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

int64_t futex_now_coarse(void)
{
	return clock_ns(CLOCK_MONOTONIC_COARSE);
}

static int wait_both(shm_word *a, uint32_t a_value, shm_word *b, uint32_t b_value, int64_t deadline)
{
	struct waitv v[2] = {
		{ .value = a_value, .address = (uintptr_t)a, .flags = WAITV_U32 },
		{ .value = b_value, .address = (uintptr_t)b, .flags = WAITV_U32 },
	};
	struct timespec t = { deadline / 1000000000, deadline % 1000000000 };

	if (syscall(SYS_futex_waitv, v, 2, 0, deadline == FUTEX_NO_DEADLINE ? NULL : &t,
		    CLOCK_MONOTONIC) >= 0)
		return 0;
	return -errno;
}

static int wait_one(shm_word *a, uint32_t a_value, int64_t deadline)
{
	struct timespec t = { deadline / 1000000000, deadline % 1000000000 };

	/* FUTEX_WAIT_BITSET, because FUTEX_WAIT takes a relative timeout. */
	if (syscall(SYS_futex, a, FUTEX_WAIT_BITSET, a_value,
		    deadline == FUTEX_NO_DEADLINE ? NULL : &t, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
		return 0;
	return -errno;
}

int futex_wait(shm_word *a, uint32_t a_value, shm_word *b, uint32_t b_value, int64_t deadline)
{
	int ret;

	if (!b)
		return wait_one(a, a_value, deadline);
	if (atomic_load_explicit(&waitv_works, memory_order_relaxed) != 2) {
		ret = wait_both(a, a_value, b, b_value, deadline);
		if (ret != -ENOSYS && ret != -EPERM)
			return ret;
		atomic_store_explicit(&waitv_works, 2, memory_order_relaxed);
	}
	for (;;) {
		int64_t soon = futex_now() + POLL_NS;

		if (atomic_load_explicit(b, memory_order_relaxed) != b_value)
			return -EAGAIN;
		if (deadline <= soon)
			return wait_one(a, a_value, deadline);
		ret = wait_one(a, a_value, soon);
		if (ret != -ETIMEDOUT)
			return ret;
	}
}

void futex_wake_all(shm_word *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void futex_wake_one(shm_word *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
