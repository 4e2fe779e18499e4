/* SPDX-License-Identifier: MIT */
/*
 * The only file that sleeps and wakes: futex(2), futex_waitv, and the clocks that go with them.
 *
 * Futexes here are shared (no FUTEX_PRIVATE_FLAG: another process has another address), deadlines
 * absolute on CLOCK_MONOTONIC (a call that is resumed after a signal needs no arithmetic), and
 * EINTR is always passed up: only Python can run Python's signal handlers.
 */
#ifndef SHMLOCK_FUTEX_H
#define SHMLOCK_FUTEX_H

#include "layout.h"

#define FUTEX_NO_DEADLINE INT64_MAX

/* CLOCK_MONOTONIC, ns. */
int64_t futex_now(void);
/* CLOCK_MONOTONIC_COARSE, ns: reads no hardware clock, some milliseconds old. */
int64_t futex_now_coarse(void);

/*
 * Sleep while *a == a_value and *b == b_value (b may be NULL), until somebody wakes either or the
 * deadline passes.  Returns 0 (woken: look again), -EAGAIN (a value differs), -EINTR, -ETIMEDOUT.
 * Without futex_waitv (kernel before 5.16, some sandboxes) only `a` is slept on, 20 ms at a time,
 * with a look at `b` in between.
 */
int futex_wait(shm_word *a, uint32_t a_value, shm_word *b, uint32_t b_value, int64_t deadline);

/* Wake everybody who sleeps on the word.  Rule R3: never only one, see dlock.h. */
void futex_wake_all(shm_word *word);
/* Wake one sleeper: only for the control that shows why R3 is a rule. */
void futex_wake_one(shm_word *word);

#endif
