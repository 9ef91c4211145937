/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Disks of User-Mode Linux that are streamed from a web server by libvmstream.
 *
 * This is the seam between ubd_kern.c, which knows block requests, and
 * ubd_stream_user.c, which knows the library. Three parties call through it:
 *
 *   K  the kernel, when a disk comes or goes
 *   I  the I/O thread of ubd
 *   L  threads of the library; they only write into two pipes, and never
 *      touch what belongs to the kernel
 */
#ifndef __UM_UBD_STREAM_H
#define __UM_UBD_STREAM_H

#define UBD_STREAM_PREFIX	"stream:"
/* Longest line of a message, with its NUL. */
#define UBD_STREAM_TEXT		512
/* A read of a COW disk has at most one bit of a word for each sector. */
#define UBD_STREAM_SECTOR	512

struct ubd_stream;

enum ubd_stream_op {
	UBD_STREAM_READ,
	UBD_STREAM_WRITE,
	UBD_STREAM_DISCARD,
	UBD_STREAM_FLUSH,
};

/* The part of a block request that belongs to the stream. */
struct ubd_stream_req {
	struct ubd_stream *stream;	/* NULL: the request needs none */
	enum ubd_stream_op op;
	unsigned long long offset;
	unsigned int length;
	unsigned long cow_mask;		/* sectors that the COW file has */
	int error;			/* 0 or a negative errno */

	/* All below is private to ubd_stream_user.c, and to I. */
	unsigned int asked;		/* so many bytes have an answer */
	unsigned int waiting;		/* answers that are still to come */
	int again;			/* is in the list of those to ask again */
	struct ubd_stream_req *next;
};

struct ubd_stream_line {
	int level;			/* 3, 4 or 6, as of printk */
	char text[UBD_STREAM_TEXT];
};

static inline int ubd_is_stream(const char *name)
{
	const char *prefix = UBD_STREAM_PREFIX;

	while (name && *prefix && *name == *prefix)
		name++, prefix++;
	return !*prefix;
}

#ifdef CONFIG_BLK_DEV_UBD_STREAM

/* K: once, before the I/O thread; the descriptor has lines to print. */
extern int ubd_stream_init(void);
extern int ubd_stream_read_line(int fd, struct ubd_stream_line *line);

/*
 * K: @spec is "stream:URL[,key=value...]" and is cut in pieces; what is left
 * of it is the name of the stream, "stream:URL".
 */
extern int ubd_stream_open(struct ubd_stream **out, int unit, char *spec,
			   int *read_only, char **serial);
extern void ubd_stream_close(struct ubd_stream *stream);
extern int ubd_stream_fd(struct ubd_stream *stream);
extern unsigned long long ubd_stream_size(struct ubd_stream *stream);

/* K: of a file, or of an open stream if it has the name of one. */
extern int ubd_backing_size(const char *name, unsigned long long *size);
extern int ubd_backing_modtime(const char *name, long long *modtime);

/* K: after the I/O thread has ended, nobody reads what L has to tell. */
extern void ubd_stream_io_ended(void);

/* I: 1 when the request has to wait, else 0 and @req->error. */
extern int ubd_stream_park(struct ubd_stream_req *req);
/* I: a request that waits no more, or NULL. */
extern struct ubd_stream_req *ubd_stream_unpark(void);
/* I: the bytes have been moved; 1 when they still have to be made durable. */
extern int ubd_stream_finish(struct ubd_stream_req *req, int failed, int sync);
/* I: for poll(). */
extern int ubd_stream_poll_fd(void);
extern int ubd_stream_timeout(void);

#else

#define ubd_backing_size	os_file_size
#define ubd_backing_modtime	os_file_modtime

static inline int ubd_stream_open(struct ubd_stream **out, int unit, char *spec,
				  int *read_only, char **serial)
{
	return -38;	/* ENOSYS, for kernel and host alike */
}

static inline void ubd_stream_close(struct ubd_stream *stream)
{
}

static inline int ubd_stream_fd(struct ubd_stream *stream)
{
	return -1;
}

static inline unsigned long long ubd_stream_size(struct ubd_stream *stream)
{
	return 0;
}

static inline void ubd_stream_io_ended(void)
{
}

static inline int ubd_stream_park(struct ubd_stream_req *req)
{
	return 0;
}

static inline struct ubd_stream_req *ubd_stream_unpark(void)
{
	return (struct ubd_stream_req *)0;
}

static inline int ubd_stream_finish(struct ubd_stream_req *req, int failed,
				    int sync)
{
	return 0;
}

static inline int ubd_stream_poll_fd(void)
{
	return -1;
}

static inline int ubd_stream_timeout(void)
{
	return -1;
}

#endif /* CONFIG_BLK_DEV_UBD_STREAM */

#endif
