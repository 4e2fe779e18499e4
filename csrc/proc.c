/* SPDX-License-Identifier: MIT */
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* State letter and start time. 0 or -errno; -EIO: not understood. */
static int read_stat(uint32_t tgid, uint32_t tid, char *state, uint64_t *start)
{
	char path[64], text[512], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%u/task/%u/stat", tgid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		n = -errno; /* ESRCH: it went between open and read */
	close(fd);
	if (n <= 0)
		return n ? (int)n : -EIO;
	text[n] = 0;
	p = strrchr(text, ')'); /* the command in field 2 may hold anything, ")" included */
	if (!p || p[1] != ' ' || !p[2])
		return -EIO;
	p += 2; /* field 3 */
	*state = *p;
	for (int field = 3; field < 22 && p; field++) {
		p = strchr(p, ' ');
		if (p)
			p++;
	}
	if (!p)
		return -EIO;
	*start = strtoull(p, NULL, 10);
	return 0;
}

uint64_t proc_start_time(uint32_t tgid, uint32_t tid)
{
	uint64_t start = 0;
	char state;

	return read_stat(tgid, tid, &state, &start) ? 0 : start;
}

enum proc_state proc_judge(uint32_t tgid, uint32_t tid, uint64_t start_time)
{
	uint64_t start;
	char state;
	int ret = read_stat(tgid, tid, &state, &start);

	if (ret == 0)
		return state == 'Z' || state == 'X' || start != start_time ? PROC_DEAD : PROC_ALIVE;
	if (ret != -ENOENT && ret != -ESRCH)
		return PROC_UNKNOWN;
	/* No entry may also mean that /proc hides it: ask the kernel. */
	if (syscall(SYS_tgkill, tgid, tid, 0) == -1 && errno == ESRCH)
		return PROC_DEAD;
	return PROC_UNKNOWN;
}
