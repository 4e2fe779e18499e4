/* SPDX-License-Identifier: MIT */
/* What /proc says about a thread: its start time makes a reused thread id recognisable. */
#ifndef SHMLOCK_PROC_H
#define SHMLOCK_PROC_H

#include <stdint.h>

/* Field 22 of /proc/TGID/task/TID/stat; 0: no such thread, a zombie, or /proc cannot be read. */
uint64_t proc_start_time(uint32_t tgid, uint32_t tid);
/* 1: there is a /proc to ask. Without one nobody may be declared dead by it. */
int proc_readable(void);

#endif
