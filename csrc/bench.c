/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "futex.h"
#include "listing.h"

/* Names in use at once: small enough for the first-level cache, as in the kernel's own cases. */
#define NAMES 64u

struct bench {
	struct task *task;
	char path[NAMES][512]; /* path/prefixNN */
	char fresh[512];       /* room for never-seen names */
	size_t fresh_at;
	uint64_t serial;
};

typedef int (*bench_loop)(struct bench *bench, uint64_t i);

/* The yardstick: claim and release of a bare word, alone on its line. */
static int two_cas(struct bench *bench, uint64_t i)
{
	static _Alignas(64) shm_word word;
	uint32_t zero = 0, one = 1;

	(void)bench;
	(void)i;
	atomic_compare_exchange_strong(&word, &zero, 1);
	atomic_compare_exchange_strong(&word, &one, 0);
	return 0;
}

/* Pure computing, no memory: what a second process costs the machine itself. */
static int control(struct bench *bench, uint64_t i)
{
	for (int n = 0; n < 16; n++)
		bench->serial = (bench->serial ^ i) * 0x9e3779b97f4a7c15ull;
	return 0;
}

static int lock_path(struct bench *bench, uint64_t i)
{
	struct shmlock_name lock = { .path = bench->path[i % NAMES] };
	int ret = namelock_acquire(bench->task, &lock);

	return ret ? ret : namelock_release(bench->task, &lock, false);
}

static int create_unlink(struct bench *bench, uint64_t i)
{
	const char *path = bench->path[i % NAMES];
	int ret = namei_make(bench->task, path, S_IFREG | 0666);

	return ret ? ret : namei_unlink(bench->task, path);
}

static int create_unlink_fresh(struct bench *bench, uint64_t i)
{
	uint64_t n = bench->serial++;
	int ret;

	(void)i;
	for (int digit = 9; digit >= 0; digit--, n /= 10)
		bench->fresh[bench->fresh_at + (size_t)digit] = (char)('0' + n % 10);
	ret = namei_make(bench->task, bench->fresh, S_IFREG | 0666);
	return ret ? ret : namei_unlink(bench->task, bench->fresh);
}

static int mkdir_rmdir(struct bench *bench, uint64_t i)
{
	const char *path = bench->path[i % NAMES];
	int ret = namei_make(bench->task, path, S_IFDIR | 0777);

	return ret ? ret : namei_rmdir(bench->task, path);
}

static int stat_path(struct bench *bench, uint64_t i)
{
	struct shmlock_stat st;
	int ret = listing_stat(bench->task->arena, bench->path[i % NAMES], &st);

	return ret == -ENOENT ? 0 : ret;
}

/* The kernel's own: path is then a directory of a tmpfs. */
static int tmpfs_create_unlink(struct bench *bench, uint64_t i)
{
	const char *path = bench->path[i % NAMES];
	int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	close(fd);
	return unlink(path) ? -errno : 0;
}

static int syscall_none(struct bench *bench, uint64_t i)
{
	(void)bench;
	(void)i;
	return syscall(SYS_getpid) > 0 ? 0 : -errno;
}

/* Lock and unlock a name that was looked up before: the bare dentry lock, with its checks. */
static int64_t lock_handle(struct bench *bench, uint64_t ops)
{
	struct name_key key;
	struct locked locked;
	struct found found;
	struct walk walk;
	int64_t begin;
	int ret = walk_parent(bench->task->arena, bench->path[0], &walk);

	if (ret)
		return ret;
	name_key(bench->task->arena, &key, walk.dir.ino, &walk.name);
	lock_path(bench, 0);
	ret = dcache_lookup(bench->task->arena, &key, &found);
	if (ret)
		return ret;
	begin = futex_now();
	for (uint64_t i = 0; i < ops && !ret; i++) {
		ret = dentry_lock(bench->task, &walk.dir, &key, &found, &locked);
		if (!ret)
			dentry_unlock(bench->task, &locked, 0, 0);
	}
	return ret ? ret : futex_now() - begin;
}

static const struct {
	const char *name;
	bench_loop loop; /* NULL: lock_handle */
} loops[] = {
	{ "two-cas", two_cas },
	{ "control", control },
	{ "lock-handle", NULL },
	{ "lock", lock_path },
	{ "create-unlink", create_unlink },
	{ "create-unlink-fresh", create_unlink_fresh },
	{ "mkdir-rmdir", mkdir_rmdir },
	{ "stat", stat_path },
	{ "tmpfs-create-unlink", tmpfs_create_unlink },
	{ "system-call", syscall_none },
};
#define LOOPS ((int)(sizeof(loops) / sizeof(loops[0])))

const char *bench_name(int loop)
{
	return loop >= 0 && loop < LOOPS ? loops[loop].name : "";
}

static int prepare(struct bench *bench, const char *path, const char *prefix)
{
	size_t room = sizeof(bench->path[0]);
	int n;

	for (unsigned int i = 0; i < NAMES; i++) {
		n = snprintf(bench->path[i], room, "%s/%s%02u", path, prefix, i);
		if (n < 0 || (size_t)n >= room)
			return -ENAMETOOLONG;
	}
	n = snprintf(bench->fresh, sizeof(bench->fresh), "%s/%s", path, prefix);
	if (n < 0 || (size_t)n + 11 >= sizeof(bench->fresh))
		return -ENAMETOOLONG;
	bench->fresh_at = (size_t)n;
	memset(bench->fresh + n, 0, 11);
	/* Never seen, also by an earlier call: begin where the clock is. */
	bench->serial = (uint64_t)futex_now() % 5000000000ull;
	return 0;
}

int64_t bench_run(struct task *task, int loop, const char *path, const char *prefix, uint64_t ops)
{
	struct bench bench = { .task = task };
	int ret = prepare(&bench, path, prefix);
	int64_t begin;

	if (ret)
		return ret;
	if (loop < 0 || loop >= LOOPS)
		return -EINVAL;
	if (!loops[loop].loop)
		return lock_handle(&bench, ops);
	begin = futex_now();
	for (uint64_t i = 0; i < ops && !ret; i++)
		ret = loops[loop].loop(&bench, i);
	return ret ? ret : futex_now() - begin;
}
