/* SPDX-License-Identifier: MIT */
/* What /proc says about a thread: its start time makes a reused thread id recognisable. */
#ifndef SHMLOCK_PROC_H
#define SHMLOCK_PROC_H

#include <stdint.h>

/* Field 22 of /proc/TGID/task/TID/stat; 0: it could not be read. */
uint64_t proc_start_time(uint32_t tgid, uint32_t tid);

enum proc_state { PROC_ALIVE, PROC_DEAD, PROC_UNKNOWN };

/*
 * Does the thread that started then still live?  PROC_DEAD only on proof: its stat was read and
 * says so, or the kernel says that there is no such thread.  Whatever else goes wrong (no file
 * descriptor left, no /proc, no permission) is PROC_UNKNOWN: to declare a live task dead would
 * give its locks away under it.
 */
enum proc_state proc_judge(uint32_t tgid, uint32_t tid, uint64_t start_time);

#endif
