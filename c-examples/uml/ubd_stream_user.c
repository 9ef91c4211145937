// SPDX-License-Identifier: GPL-2.0
/*
 * Disks of User-Mode Linux that are streamed from a web server by libvmstream.
 *
 * The library keeps a sparse local file and says when a range of it may be
 * read or written; ubd does the reading and writing as with any file. Here are
 *
 * - the life of a stream: a thread of its own opens it, looks after it and
 *   closes it. The library's larger functions want an ordinary stack, which
 *   kernel threads do not have;
 *
 * - the parking of requests: one that is not ready waits in no queue at all,
 *   the library hands its address back when its blocks are here. That goes
 *   through a pipe which the I/O thread polls beside its own;
 *
 * - a pipe for messages, since only the kernel's own thread may printk().
 *
 * All threads here and in the library have every signal blocked: the kernel's
 * SIGALRM and SIGIO go to the process, and must find the kernel's thread.
 * Nothing on them allocates: malloc() is kmalloc() in this file.
 */

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <vmstream.h>
#include <os.h>
#include <um_malloc.h>
#include "ubd_stream.h"

/* Options on a command line; the library has about thirty. */
#define OPTIONS_MAX	64
/* A wait is worth a message when the link has been still for so long, ... */
#define WAIT_TOLD_S	5
/* ... and another one whenever it has become so many times longer. */
#define WAIT_TOLD_AGAIN	2
/* Ask again after so long where no completion may come that would be a sign. */
#define AGAIN_MS	10
/* Looks at a modification time, a millisecond apart. */
#define MODTIME_TRIES	1000

struct ubd_stream {
	struct ubd_stream *next;		/* in open_streams */
	char *name;				/* "stream:URL" */
	char disk[8];				/* "ubda" */
	const char *options[OPTIONS_MAX + 1];	/* the last one is NULL */
	char *source;				/* "source=URL" */
	const char *cache;			/* where it is kept, or NULL */

	pthread_t thread;
	int opened;				/* eventfd, written by the thread */
	int stop;				/* eventfd, read by the thread */
	int error;
	char reason[UBD_STREAM_TEXT];

	vms_image *image;
	int fd;
	unsigned long long size;
	unsigned long long resident;		/* when it was opened */
};

/* What a thread of the library tells the I/O thread. */
struct arrival {
	struct ubd_stream_req *req;
	long error;
};

static struct ubd_stream *open_streams;

static int line_fds[2] = { -1, -1 };
static int arrival_fds[2] = { -1, -1 };
static atomic_int io_ended;

/*
 * Private to the I/O thread: answers to come, and requests that the library
 * had no room for, oldest first.
 */
static unsigned int arrivals_due;
static struct ubd_stream_req *again_first;
static struct ubd_stream_req **again_end = &again_first;

/* A message from any thread to the kernel's log; lost if that is behind. */
static void __attribute__((format(printf, 2, 3)))
say(int level, const char *format, ...)
{
	struct ubd_stream_line line = { .level = level };
	va_list arguments;
	ssize_t n;

	va_start(arguments, format);
	vsnprintf(line.text, sizeof(line.text), format, arguments);
	va_end(arguments);
	/* One datagram is whole or not there at all. */
	n = write(line_fds[1], &line, sizeof(line));
	(void)n;
}

static void library_says(void *user_data, int32_t level, const char *message)
{
	say(level == VMS_LOG_ERROR ? 3 : level == VMS_LOG_WARN ? 4 : 6,
	    "ubd: %s", message);
}

static void arrived(void *user_data, uint64_t tag, int32_t result)
{
	struct arrival arrival = {
		.req = (struct ubd_stream_req *)(uintptr_t)tag,
		.error = result,
	};
	ssize_t n;

	if (atomic_load(&io_ended))
		return;
	/*
	 * So short a write is whole or not done. It does not block: ubd has
	 * 64 requests a disk, each with at most 32 answers to come (a COW
	 * disk whose every other sector is missing), but such a crowd has
	 * room in the pipe as long as the I/O thread takes from it.
	 */
	do {
		n = write(arrival_fds[1], &arrival, sizeof(arrival));
	} while (n < 0 && errno == EINTR);
}

int ubd_stream_init(void)
{
	int err;

	err = os_pipe(arrival_fds, 0, 1);
	if (!err)
		err = os_set_fd_block(arrival_fds[0], 0);
	if (!err && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK,
			       0, line_fds) < 0)
		err = -errno;
	return err ? err : line_fds[0];
}

int ubd_stream_read_line(int fd, struct ubd_stream_line *line)
{
	return os_read_file(fd, line, sizeof(*line)) == sizeof(*line);
}

/* The life of a stream */

static void signal_event(int fd)
{
	uint64_t one = 1;
	ssize_t n;

	do {
		n = write(fd, &one, sizeof(one));
	} while (n < 0 && errno == EINTR);
}

static void await_event(int fd)
{
	uint64_t count;
	ssize_t n;

	do {
		n = read(fd, &count, sizeof(count));
	} while (n < 0 && errno == EINTR);
}

/*
 * Looks once a second whether the guest waits and nothing comes, and says so.
 * The guest only waits; the one who sits before it should know for what.
 */
static void watch(struct ubd_stream *stream)
{
	struct pollfd stop = { .fd = stream->stop, .events = POLLIN };
	const char *url = stream->source + strlen("source=");
	unsigned int still_s = 0, tell_s = WAIT_TOLD_S;
	uint64_t fetched = 0;
	char reason[256];

	while (poll(&stop, 1, 1000) == 0) {
		struct vms_stats stats = { .struct_size = sizeof(stats) };

		if (vms_get_stats(stream->image, &stats) < 0)
			continue;
		if (stats.waiting && stats.bytes_fetched == fetched) {
			if (++still_s < tell_s)
				continue;
			if (!stats.failures_on_end ||
			    vms_link_error(stream->image, reason, sizeof(reason)) <= 0)
				strcpy(reason, "nothing comes from it");
			say(3, "%s: waiting for %s: %s (%u s)", stream->disk, url,
			    reason, still_s);
			tell_s = still_s * WAIT_TOLD_AGAIN;
			continue;
		}
		if (tell_s > WAIT_TOLD_S)
			say(3, "%s: %s goes on after %u s", stream->disk, url, still_s);
		fetched = stats.bytes_fetched;
		still_s = 0;
		tell_s = WAIT_TOLD_S;
	}
}

static void *live(void *arg)
{
	struct ubd_stream *stream = arg;
	struct vms_stats stats = { .struct_size = sizeof(stats) };
	struct vms_ready ready = { .call = arrived };
	int err;

	vms_set_logger(library_says, NULL, VMS_LOG_WARN);
	stream->error = vms_open(stream->options, &ready, &stream->image);
	if (stream->error < 0) {
		snprintf(stream->reason, sizeof(stream->reason), "%s", vms_last_error());
		signal_event(stream->opened);
		return NULL;
	}
	stream->fd = vms_fd(stream->image);
	stream->size = vms_size(stream->image);
	if (!vms_get_stats(stream->image, &stats))
		stream->resident = stats.resident_bytes;
	signal_event(stream->opened);

	watch(stream);

	err = vms_flush(stream->image);
	if (!err)
		err = vms_close(stream->image);
	else
		vms_close(stream->image);
	/* The kernel prints no more when it goes down. */
	if (err)
		os_warn("%s: not all that was written to %s is durable: %s\n",
			stream->disk, stream->name, strerror(-err));
	return NULL;
}

static int start(struct ubd_stream *stream)
{
	pthread_attr_t attr;
	sigset_t all;
	int err;

	sigfillset(&all);
	pthread_attr_init(&attr);
	/* From its first instruction on. */
	pthread_attr_setsigmask_np(&attr, &all);
	err = pthread_create(&stream->thread, &attr, live, stream);
	pthread_attr_destroy(&attr);
	return -err;
}

/*
 * Cuts the next item off a list with commas between; "\," is a comma that
 * belongs to the item. Returns where the rest begins, or NULL.
 */
static char *cut(char *item)
{
	char *to = item;

	for (; *item && *item != ','; item++) {
		if (item[0] == '\\' && item[1] == ',')
			item++;
		*to++ = *item;
	}
	if (!*item) {
		*to = '\0';
		return NULL;
	}
	*to = '\0';
	return item + 1;
}

static const char *value_of(const char *option, const char *key)
{
	size_t n = strlen(key);

	return strncmp(option, key, n) ? NULL : option + n;
}

/* Every way in which the library takes "yes". */
static int is_read_only(const char *option)
{
	const char *value = value_of(option, "read_only=");

	return value && (!strcmp(value, "on") || !strcmp(value, "yes") ||
			 !strcmp(value, "true") || !strcmp(value, "1"));
}

static int parse(struct ubd_stream *stream, char *spec, int *read_only, char **serial)
{
	char *rest = cut(spec), *option;
	int n = 0;

	stream->name = spec;
	stream->source = (char *)(stream + 1);
	sprintf(stream->source, "source=%s", spec + strlen(UBD_STREAM_PREFIX));
	stream->options[n++] = stream->source;
	while (rest) {
		option = rest;
		rest = cut(option);
		if (value_of(option, "serial=")) {
			*serial = option + strlen("serial=");
			continue;
		}
		if (is_read_only(option)) {
			*read_only = 1;
			continue;
		}
		if (value_of(option, "cache="))
			stream->cache = value_of(option, "cache=");
		if (value_of(option, "file="))
			stream->cache = value_of(option, "file=");
		/* One place is left for read_only. */
		if (n == OPTIONS_MAX - 1) {
			printk(UM_KERN_ERR "%s: more than %d options\n",
			       stream->disk, OPTIONS_MAX - 2);
			return -E2BIG;
		}
		stream->options[n++] = option;
	}
	if (*read_only)
		stream->options[n++] = "read_only=on";
	return 0;
}

static void free_stream(struct ubd_stream *stream)
{
	if (stream->opened >= 0)
		os_close_file(stream->opened);
	if (stream->stop >= 0)
		os_close_file(stream->stop);
	kfree(stream);
}

int ubd_stream_open(struct ubd_stream **out, int unit, char *spec, int *read_only,
		    char **serial)
{
	struct ubd_stream *stream;
	int err;

	if (arrival_fds[0] < 0)
		return -ENODEV;
	/* Behind it is "source=URL", which is shorter than @spec and "source=". */
	stream = uml_kmalloc(sizeof(*stream) + strlen("source=") + strlen(spec) + 1,
			     UM_GFP_KERNEL);
	if (!stream)
		return -ENOMEM;
	memset(stream, 0, sizeof(*stream));
	sprintf(stream->disk, "ubd%c", 'a' + unit);
	stream->opened = os_eventfd(0, EFD_CLOEXEC);
	stream->stop = os_eventfd(0, EFD_CLOEXEC);
	err = stream->opened < 0 ? stream->opened : stream->stop;
	if (err < 0)
		goto fail;
	err = parse(stream, spec, read_only, serial);
	if (err)
		goto fail;
	err = start(stream);
	if (err) {
		printk(UM_KERN_ERR "%s: no thread for the stream, errno = %d\n",
		       stream->disk, -err);
		goto fail;
	}
	await_event(stream->opened);
	err = stream->error;
	if (err) {
		pthread_join(stream->thread, NULL);
		printk(UM_KERN_ERR "%s: cannot stream %s: %s\n", stream->disk,
		       stream->source + strlen("source="), stream->reason);
		goto fail;
	}
	printk(UM_KERN_INFO "%s: streaming %s: %llu MiB, %llu%% of it here, %s%s\n",
	       stream->disk, stream->source + strlen("source="), stream->size >> 20,
	       stream->size ? stream->resident * 100 / stream->size : 100,
	       stream->cache ? "kept in " : "nothing is kept (no cache=)",
	       stream->cache ? stream->cache : "");
	stream->next = open_streams;
	open_streams = stream;
	*out = stream;
	return 0;
fail:
	free_stream(stream);
	return err;
}

/* Makes durable what was written; no request may be under way. */
void ubd_stream_close(struct ubd_stream *stream)
{
	struct ubd_stream **at = &open_streams;

	while (*at && *at != stream)
		at = &(*at)->next;
	if (!*at)
		return;
	*at = stream->next;
	signal_event(stream->stop);
	pthread_join(stream->thread, NULL);
	free_stream(stream);
}

int ubd_stream_fd(struct ubd_stream *stream)
{
	return stream->fd;
}

unsigned long long ubd_stream_size(struct ubd_stream *stream)
{
	return stream->size;
}

static struct ubd_stream *find(const char *name)
{
	struct ubd_stream *stream = open_streams;

	while (stream && strcmp(stream->name, name))
		stream = stream->next;
	if (!stream)
		printk(UM_KERN_ERR "ubd: the COW file lies over %s: boot with both, "
		       "ubdN=COWFILE,%s\n", name, name);
	return stream;
}

int ubd_backing_size(const char *name, unsigned long long *size)
{
	struct ubd_stream *stream;

	if (!ubd_is_stream(name))
		return os_file_size(name, size);
	stream = find(name);
	if (!stream)
		return -ENOENT;
	*size = stream->size;
	return 0;
}

int ubd_backing_modtime(const char *name, long long *modtime)
{
	struct ubd_stream *stream;
	struct stat status;
	int tries;

	if (!ubd_is_stream(name))
		return os_file_modtime(name, modtime);
	stream = find(name);
	if (!stream)
		return -ENOENT;
	if (!stream->cache) {
		printk(UM_KERN_ERR "%s: a COW file wants a stream that is kept: add "
		       "cache=DIR\n", stream->disk);
		return -EINVAL;
	}
	/*
	 * That of the published image, in whole seconds: the library puts it
	 * back after each write to the file. Caught in between it has parts of
	 * a second.
	 */
	for (tries = 0; tries < MODTIME_TRIES; tries++) {
		if (fstat(stream->fd, &status) < 0)
			return -errno;
		*modtime = status.st_mtim.tv_sec;
		if (!status.st_mtim.tv_nsec)
			return 0;
		usleep(1000);
	}
	return -EBUSY;
}

/* The life of a request, all on the I/O thread */

static int in_cow(const struct ubd_stream_req *req, unsigned int at)
{
	return req->cow_mask >> (at / UBD_STREAM_SECTOR) & 1;
}

static int library_op(enum ubd_stream_op op)
{
	switch (op) {
	case UBD_STREAM_READ:
		return VMS_READ;
	case UBD_STREAM_WRITE:
		return VMS_WRITE;
	case UBD_STREAM_DISCARD:
		return VMS_DISCARD;
	case UBD_STREAM_FLUSH:
		break;
	}
	return VMS_FLUSH;
}

/* Asks for every run of sectors that has to come from the stream. */
static void ask(struct ubd_stream_req *req)
{
	unsigned int start, end;
	int answer;

	while (req->asked < req->length && !req->error) {
		start = req->asked;
		end = req->length;
		if (req->cow_mask) {
			while (start < req->length && in_cow(req, start))
				start += UBD_STREAM_SECTOR;
			end = start;
			while (end < req->length && !in_cow(req, end))
				end += UBD_STREAM_SECTOR;
			if (start == end) {
				req->asked = end;
				break;
			}
		}
		answer = vms_block_needed(req->stream->image, library_op(req->op),
					  req->offset + start, end - start,
					  (uintptr_t)req);
		if (answer == -EAGAIN)
			return;
		if (answer == VMS_PENDING) {
			req->waiting++;
			arrivals_due++;
		} else if (answer < 0) {
			req->error = answer;
		}
		req->asked = end;
	}
}

int ubd_stream_park(struct ubd_stream_req *req)
{
	if (!req->stream)
		return 0;
	req->asked = 0;
	req->waiting = 0;
	req->again = 0;
	ask(req);
	if (req->asked < req->length && !req->error) {
		req->again = 1;
		req->next = NULL;
		*again_end = req;
		again_end = &req->next;
	}
	return req->again || req->waiting;
}

/* The oldest of those to be asked again, if it could be asked to the end. */
static struct ubd_stream_req *asked_again(void)
{
	struct ubd_stream_req *req;

	while ((req = again_first)) {
		ask(req);
		if (req->asked < req->length && !req->error)
			break;
		again_first = req->next;
		if (!again_first)
			again_end = &again_first;
		req->again = 0;
		if (!req->waiting)
			return req;
	}
	return NULL;
}

struct ubd_stream_req *ubd_stream_unpark(void)
{
	struct ubd_stream_req *req;
	struct arrival arrival;

	while (arrivals_due &&
	       read(arrival_fds[0], &arrival, sizeof(arrival)) == sizeof(arrival)) {
		arrivals_due--;
		req = arrival.req;
		req->waiting--;
		if (arrival.error && !req->error)
			req->error = arrival.error;
		if (!req->waiting && !req->again)
			return req;
	}
	return again_first ? asked_again() : NULL;
}

int ubd_stream_finish(struct ubd_stream_req *req, int failed, int sync)
{
	if (!req->stream || req->error ||
	    (req->op != UBD_STREAM_WRITE && req->op != UBD_STREAM_DISCARD))
		return 0;
	vms_block_done(req->stream->image, library_op(req->op), req->offset,
		       req->length, failed ? -EIO : 0);
	if (failed || !sync)
		return 0;
	req->op = UBD_STREAM_FLUSH;
	return ubd_stream_park(req);
}

int ubd_stream_poll_fd(void)
{
	return arrival_fds[0];
}

int ubd_stream_timeout(void)
{
	return again_first ? AGAIN_MS : -1;
}

void ubd_stream_io_ended(void)
{
	atomic_store(&io_ended, 1);
}
