/* nbdkit-vmstream-plugin: serves a disk image that still lies on a web server.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The plugin never waits for the network itself.  Before it touches a range
 * it asks the library (acquire), and then reads or writes the local file.
 * The manual page is docs/man/nbdkit-vmstream-plugin.1.
 */

#define _GNU_SOURCE /* asprintf, fallocate, SEEK_DATA */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <vmstream.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF (x)
#define HEADER_VERSION \
  TEXT (VMS_VERSION_MAJOR) "." TEXT (VMS_VERSION_MINOR) "." \
  TEXT (VMS_VERSION_PATCH)

/* How often a waiting request looks whether its client or the server is
 * going away.  nbdkit tells nobody who does not ask.  It is also the most
 * that a dead link adds to the time of a shutdown.
 */
#define LOOK_MS 200

/* Pause before a request is asked for again that the library could not take
 * because it has as many as it can hold.
 */
#define AGAIN_MS 1

/* How long a thread whose client has gone, or whose server ends, waits for
 * another one to have answered.
 */
#define LEAVE_MS 1000

/* The most that an NBD client may send to a server that has not named a
 * limit; more than one such request in memory per thread would be a burden.
 */
#define MAXIMUM_REQUEST (32u << 20)

/* -D vmstream.log=1: with -v, also what the library's developers want. */
NBDKIT_DLL_PUBLIC int vmstream_debug_log = 0;

static struct vms_image *image;
static pthread_key_t leaving_key;
static bool read_only;
static const char *url, *cache_path;

/* The options for vms_open, "key=value", with room for those that get_ready
 * adds and for the NULL at the end.
 */
enum { EXTRA_OPTIONS = 3 };
static char **options;
static size_t nr_options;

/* ---- Log ---- */

static void
log_message (void *user_data, int32_t level, const char *message)
{
  (void) user_data;

  switch (level) {
  case VMS_LOG_ERROR:
    nbdkit_error ("%s", message);
    break;
  case VMS_LOG_WARN:
    /* nbdkit knows no warnings.  A link that has just failed is what the
     * user of a guest that hangs wants to read, so not as debug output.
     */
    nbdkit_error ("warning: %s", message);
    break;
  default:
    nbdkit_debug ("%s", message);
  }
}

/* ---- Configuration ---- */

static void thread_has_left (void *);

static void
vmstream_load (void)
{
  int err = pthread_key_create (&leaving_key, thread_has_left);

  if (err != 0) {
    errno = err;
    nbdkit_error ("pthread_key_create: %m");
    exit (EXIT_FAILURE);
  }
}

static void
vmstream_unload (void)
{
  size_t i;

  pthread_key_delete (leaving_key);

  for (i = 0; i < nr_options; ++i)
    free (options[i]);
  free (options);
}

/* Takes ownership of the option. */
static int
add_option (char *option)
{
  char **more;

  more = realloc (options, (nr_options + 1 + EXTRA_OPTIONS) * sizeof *options);
  if (more == NULL) {
    nbdkit_error ("realloc: %m");
    free (option);
    return -1;
  }
  options = more;
  options[nr_options++] = option;
  return 0;
}

/* The server changes to "/" when it goes into the background, and only then
 * is the image opened.  So whatever names a local file is made absolute.
 */
static char *
absolute_value (const char *key, const char *value)
{
  bool source = strcmp (key, "url") == 0 || strcmp (key, "mirror") == 0;
  bool file = source && strncmp (value, "file:", 5) == 0;
  char *path, *ret;

  if (source && !file && strchr (value, ':') != NULL)
    return strdup (value); /* http:, https:, pattern: */
  if (file && strncmp (value, "file://", 7) == 0)
    return strdup (value); /* is absolute */

  path = nbdkit_absolute_path (file ? value + 5 : value);
  if (path == NULL || !source)
    return path;
  /* file: also for a plain path, which may have a colon in a directory that
   * was not written out.
   */
  if (asprintf (&ret, "file:%s", path) == -1)
    ret = NULL;
  free (path);
  return ret;
}

static int
vmstream_config (const char *key, const char *value)
{
  char *copy, *option;
  int r;

  if (strcmp (key, "source") == 0)
    key = "url";

  if (strcmp (key, "url") == 0 || strcmp (key, "mirror") == 0 ||
      strcmp (key, "cache") == 0 || strcmp (key, "file") == 0 ||
      strcmp (key, "cacert") == 0) {
    copy = absolute_value (key, value);
  }
  else if (strcmp (key, "user") == 0 || strcmp (key, "header") == 0) {
    /* Secrets should not be on a command line: "+FILE", "-" and "-FD". */
    if (nbdkit_read_password (value, &copy) == -1)
      return -1;
  }
  else {
    copy = strdup (value);
  }
  if (copy == NULL) {
    nbdkit_error ("cannot keep the parameter %s: %m", key);
    return -1;
  }

  if (strcmp (key, "read_only") == 0) {
    r = nbdkit_parse_bool (copy);
    if (r == -1) {
      free (copy);
      return -1;
    }
    read_only = r;
    free (copy);
    copy = strdup (read_only ? "on" : "off");
  }

  if (copy == NULL || asprintf (&option, "%s=%s", key, copy) == -1) {
    nbdkit_error ("asprintf: %m");
    free (copy);
    return -1;
  }
  free (copy);
  if (add_option (option) == -1)
    return -1;

  if (strcmp (key, "url") == 0)
    url = strchr (option, '=') + 1;
  else if (strcmp (key, "cache") == 0 || strcmp (key, "file") == 0)
    cache_path = strchr (option, '=') + 1;
  return 0;
}

static int
vmstream_config_complete (void)
{
  if (url == NULL) {
    nbdkit_error ("which image? the parameter url=<URL> is missing");
    return -1;
  }
  return 0;
}

#define vmstream_config_help \
  "[url=]<URL>   (required) The raw image: http:, https:, file: or a path.\n" \
  "mirror=<URL>             Another place of the same image; repeatable.\n" \
  "cache=<DIRECTORY>        Keep what arrives and what is written here;\n" \
  "                         without it nothing outlives the server.\n" \
  "file=<PATH>              The same, with the local image at this path.\n" \
  "read_only=on             Refuse writes.\n" \
  "prefetch=none            Fetch on demand only.\n" \
  "fill=on|off              Complete the image with what is left of the link.\n" \
  "error_after=<TIME>       Fail requests that wait for so long (default: wait).\n" \
  "user=<NAME:PASSWORD>     Basic authorization; +<FILE> reads it from a file.\n" \
  "<KEY>=<VALUE>            Any other option in vmstream-mount(1)."

static void
vmstream_dump_plugin (void)
{
  printf ("vmstream_library_version=%s\n", vms_version ());
  printf ("vmstream_header_version=%s\n", HEADER_VERSION);
}

/* ---- Opening and closing ---- */

static void
open_failed (int error)
{
  const char *reason = vms_last_error ();

  nbdkit_error ("%s", *reason ? reason : strerror (-error));
  errno = -error;
}

/* The image can be opened for good only after the fork, because of the
 * library's threads; but from then on nobody sees an error of a server in the
 * background.  So it is opened and closed once before.  If there is a cache,
 * it knows the image afterwards and the origin is not asked again.
 */
static int
vmstream_get_ready (void)
{
  struct stat statbuf;
  struct vms_image *probe;
  int r;

  vms_set_logger (log_message, NULL,
                  vmstream_debug_log ? VMS_LOG_DEBUG : VMS_LOG_INFO);

  /* With nbdkit -u the server will become another user.  What that user owns
   * must not get files of ours, which it could not open.
   */
  if (cache_path && stat (cache_path, &statbuf) == 0 &&
      statbuf.st_uid != geteuid ()) {
    nbdkit_debug ("%s belongs to another user: not opened before the server "
                  "runs as that user", cache_path);
    return 0;
  }

  /* Not to begin with what would be broken off at once. */
  options[nr_options] = (char *) "fill=off";
  options[nr_options + 1] = (char *) "prefetch=none";
  options[nr_options + 2] = NULL;
  r = vms_open ((const char *const *) options, NULL, &probe);
  if (r < 0) {
    open_failed (r);
    return -1;
  }
  r = vms_close (probe);
  if (r < 0) {
    nbdkit_error ("cannot keep the image: %s", vms_last_error ());
    errno = -r;
    return -1;
  }
  return 0;
}

static void on_ready (void *user_data, uint64_t tag, int32_t result);

static int
vmstream_after_fork (void)
{
  const struct vms_ready ready = { .call = on_ready };
  int r;

  options[nr_options] = NULL;
  r = vms_open ((const char *const *) options, &ready, &image);
  if (r < 0) {
    open_failed (r);
    return -1;
  }
  nbdkit_debug ("%" PRIu64 " bytes in blocks of %" PRIu64,
                vms_size (image), vms_block_size (image));
  return 0;
}

/* nbdkit comes here when the last thread has left the plugin. */
static void
vmstream_cleanup (void)
{
  int r = vms_close (image);

  image = NULL;
  if (r < 0)
    nbdkit_error ("closing the image: %s", vms_last_error ());
  vms_set_logger (NULL, NULL, 0);
}

/* ---- Connections ---- */

/* nbdkit 1.32, which Debian 12 has, ends with a failed assertion when two
 * threads answer a client that has gone: the one that notices closes the
 * socket, and the other, which had asked before whether it is open, sends.
 * Requests that wait for the network all notice at the same time.  So the
 * threads of a connection leave one after the other.  Those that had not to
 * wait are as they are in all plugins: see BUGS in the manual page.
 */
struct connection {
  pthread_mutex_t lock;
  pthread_cond_t left;
  bool leaving;   /* a thread may be sending its last answer */
  unsigned users; /* nbdkit, and the thread that is leaving */
};

/* The clock of the timed waits below. */
static void
init_condition (pthread_cond_t *condition)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (condition, &attr);
  pthread_condattr_destroy (&attr);
}

static struct timespec
in_ms (long ms)
{
  struct timespec time;

  clock_gettime (CLOCK_MONOTONIC, &time);
  time.tv_sec += ms / 1000;
  time.tv_nsec += ms % 1000 * 1000000L;
  if (time.tv_nsec >= 1000000000L) {
    time.tv_sec++;
    time.tv_nsec -= 1000000000L;
  }
  return time;
}

static void *
vmstream_open (int readonly)
{
  struct connection *connection = malloc (sizeof *connection);

  (void) readonly; /* nbdkit itself lets no write through then */
  if (connection == NULL) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  pthread_mutex_init (&connection->lock, NULL);
  init_condition (&connection->left);
  connection->leaving = false;
  connection->users = 1;
  return connection;
}

/* To be called with the lock held, which it releases. */
static void
release_connection (struct connection *connection)
{
  bool last = --connection->users == 0;

  pthread_mutex_unlock (&connection->lock);
  if (last) {
    pthread_cond_destroy (&connection->left);
    pthread_mutex_destroy (&connection->lock);
    free (connection);
  }
}

static void
vmstream_close (void *handle)
{
  struct connection *connection = handle;

  pthread_mutex_lock (&connection->lock);
  release_connection (connection);
}

/* Before a thread answers a client that has gone or whose server ends.  nbdkit
 * ends such a thread after its answer, and so lets the next one go on.  Should
 * it not, because the client reads no answers, nobody waits for long.
 */
static void
leave (struct connection *connection)
{
  const struct timespec limit = in_ms (LEAVE_MS);

  if (pthread_getspecific (leaving_key) != NULL)
    return; /* the client had sent more */
  pthread_mutex_lock (&connection->lock);
  while (connection->leaving &&
         pthread_cond_timedwait (&connection->left, &connection->lock,
                                 &limit) != ETIMEDOUT)
    ;
  if (!connection->leaving &&
      pthread_setspecific (leaving_key, connection) == 0) {
    connection->leaving = true;
    connection->users++;
  }
  pthread_mutex_unlock (&connection->lock);
}

/* At the end of the thread, which may be that of the connection as well, and
 * then come after vmstream_close.
 */
static void
thread_has_left (void *value)
{
  struct connection *connection = value;

  pthread_mutex_lock (&connection->lock);
  connection->leaving = false;
  pthread_cond_signal (&connection->left);
  release_connection (connection);
}

static int64_t
vmstream_get_size (void *handle)
{
  (void) handle;
  return (int64_t) vms_size (image);
}

static int
vmstream_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                     uint32_t *maximum)
{
  uint64_t block = vms_block_size (image);

  (void) handle;
  *minimum = 1;
  /* A write of whole blocks fetches nothing.  Smaller than a page the local
   * file could not be written without reading.
   */
  *preferred = block < 4096 ? 4096 : (uint32_t) block;
  *maximum = MAXIMUM_REQUEST;
  return 0;
}

/* Clients see this, so without user, password, and the query, which with many
 * a store is a key as well.
 */
static const char *
vmstream_export_description (void *handle)
{
  const char *authority = strstr (url, "://"), *at, *host;
  int scheme_length, length;

  (void) handle;
  if (authority == NULL)
    return nbdkit_strdup_intern ("a streamed disk image");
  scheme_length = (int) (authority - url);
  host = authority + 3;
  length = (int) strcspn (host, "?#");
  at = memchr (host, '@', strcspn (host, "/?#"));
  if (at != NULL) {
    length -= (int) (at + 1 - host);
    host = at + 1;
  }
  return nbdkit_printf_intern ("streamed from %.*s://%.*s", scheme_length, url,
                               length, host);
}

static int
vmstream_can_write (void *handle)
{
  (void) handle;
  return !read_only;
}

/* What one connection has written another one reads, and a flush of either
 * makes both durable.
 */
static int
vmstream_can_multi_conn (void *handle)
{
  (void) handle;
  return 1;
}

static int
vmstream_can_fua (void *handle)
{
  (void) handle;
  return NBDKIT_FUA_NATIVE;
}

static int
vmstream_can_cache (void *handle)
{
  (void) handle;
  return NBDKIT_CACHE_NATIVE;
}

static int
vmstream_can_fast_zero (void *handle)
{
  (void) handle;
  return 1;
}

static int
vmstream_can_extents (void *handle)
{
  (void) handle;
  return 1;
}

/* ---- Waiting ---- */

/* One request that the library may answer later.  It belongs to the thread
 * that waits; if that thread gives up, to the completion.
 */
struct request {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  enum { WAITING, DONE, ABANDONED } state;
  int32_t op;
  int32_t result;
  uint64_t offset, length;
};

static struct request *
new_request (int32_t op, uint64_t offset, uint64_t length)
{
  struct request *request = malloc (sizeof *request);

  if (request == NULL)
    return NULL;
  pthread_mutex_init (&request->lock, NULL);
  init_condition (&request->changed);
  request->state = WAITING;
  request->op = op;
  request->result = 0;
  request->offset = offset;
  request->length = length;
  return request;
}

static void
free_request (struct request *request)
{
  pthread_cond_destroy (&request->changed);
  pthread_mutex_destroy (&request->lock);
  free (request);
}

/* Called by the library, on a thread of its own, once for each answer of
 * VMS_PENDING.
 */
static void
on_ready (void *user_data, uint64_t tag, int32_t result)
{
  struct request *request = (struct request *) (uintptr_t) tag;
  bool abandoned;

  (void) user_data;
  pthread_mutex_lock (&request->lock);
  abandoned = request->state == ABANDONED;
  if (!abandoned) {
    request->state = DONE;
    request->result = result;
    pthread_cond_signal (&request->changed);
  }
  pthread_mutex_unlock (&request->lock);
  if (!abandoned)
    return;

  /* Nobody will write into the range: give the claim back.  The image is
   * there, because vms_close returns only after the last completion.
   */
  if (result == 0 &&
      (request->op == VMS_WRITE || request->op == VMS_DISCARD))
    vms_block_done (image, request->op, request->offset, request->length,
                    -ECANCELED);
  free_request (request);
}

/* Whether the client has gone, or the server ends. */
static bool
nobody_waits (void)
{
  /* Sleeping for no time at all only asks whether it is worth it. */
  return nbdkit_nanosleep (0, 0) == -1;
}

/* Waits for the completion.  A dead link may keep it away for ever, and then
 * neither the end of the client nor that of the server must wait for it.
 */
static int
wait_for (struct connection *connection, struct request *request)
{
  bool gone = false;
  int result = -ESHUTDOWN;

  pthread_mutex_lock (&request->lock);
  while (request->state == WAITING && !gone) {
    const struct timespec look = in_ms (LOOK_MS);

    if (pthread_cond_timedwait (&request->changed, &request->lock,
                                &look) == ETIMEDOUT) {
      pthread_mutex_unlock (&request->lock);
      gone = nobody_waits ();
      pthread_mutex_lock (&request->lock);
    }
  }
  if (request->state == WAITING) {
    request->state = ABANDONED;
    pthread_mutex_unlock (&request->lock);
  }
  else {
    result = request->result;
    pthread_mutex_unlock (&request->lock);
    free_request (request);
    gone = gone || nobody_waits ();
  }
  if (gone)
    leave (connection);
  return result;
}

/* Returns 0 when the range may be touched in the local file, or a negative
 * errno.  After VMS_WRITE and VMS_DISCARD vms_block_done must follow.
 *
 * The form with a callback rather than vms_block_wait: a sleeper there can
 * be woken only together with all others, and there are places for 256, fewer
 * than the threads of 17 connections.
 */
static int
acquire (struct connection *connection, int32_t op, uint64_t offset,
         uint64_t length)
{
  struct request *request = new_request (op, offset, length);
  int answer;

  if (request == NULL)
    return -ENOMEM;
  for (;;) {
    answer = vms_block_needed (image, op, offset, length,
                               (uint64_t) (uintptr_t) request);
    if (answer == VMS_PENDING)
      return wait_for (connection, request);
    if (answer != -EAGAIN)
      break;
    if (nbdkit_nanosleep (0, AGAIN_MS * 1000000) == -1) {
      leave (connection);
      answer = -ESHUTDOWN;
      break;
    }
  }
  free_request (request);
  return answer;
}

/* ---- Requests ---- */

static int
failed (int error, const char *what, uint64_t count, uint64_t offset)
{
  char why[512] = "";

  /* The origin's reason, or the local disk's, says more than "I/O error". */
  if (error == -EIO && vms_link_error (image, why, sizeof why) <= 0)
    why[0] = '\0';
  nbdkit_error ("cannot %s %" PRIu64 " bytes at %" PRIu64 ": %s%s%s", what,
                count, offset, strerror (-error), *why ? ": " : "", why);
  errno = error == -ECANCELED ? ESHUTDOWN : -error;
  return -1;
}

static int
flush (struct connection *connection)
{
  int r = acquire (connection, VMS_FLUSH, 0, 0);

  return r < 0 ? failed (r, "make durable", vms_size (image), 0) : 0;
}

static int
vmstream_flush (void *handle, uint32_t flags)
{
  (void) flags;
  return flush (handle);
}

static int
vmstream_pread (void *handle, void *buffer, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  char *at = buffer;
  uint64_t from = offset;
  uint32_t left = count;
  int r;

  (void) flags;
  r = acquire (handle, VMS_READ, offset, count);
  if (r < 0)
    return failed (r, "read", count, offset);
  while (left > 0) {
    ssize_t got = pread (vms_fd (image), at, left, (off_t) from);

    if (got == -1 && errno == EINTR)
      continue;
    if (got <= 0) /* 0: somebody cut the local file */
      return failed (got == 0 ? -EIO : -errno, "read", left, from);
    at += got;
    from += (uint64_t) got;
    left -= (uint32_t) got;
  }
  return 0;
}

/* Returns 0 or a negative errno. */
static int
write_local (const char *buffer, uint64_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t put = pwrite (vms_fd (image), buffer, count, (off_t) offset);

    if (put == -1 && errno == EINTR)
      continue;
    if (put == -1)
      return -errno;
    buffer += put;
    offset += (uint64_t) put;
    count -= (uint64_t) put;
  }
  return 0;
}

static int
vmstream_pwrite (void *handle, const void *buffer, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  int r;

  r = acquire (handle, VMS_WRITE, offset, count);
  if (r < 0)
    return failed (r, "write", count, offset);
  r = write_local (buffer, count, offset);
  vms_block_done (image, VMS_WRITE, offset, count, r);
  if (r < 0)
    return failed (r, "write", count, offset);
  return flags & NBDKIT_FLAG_FUA ? flush (handle) : 0;
}

/* Returns 0 or a negative errno: -EOPNOTSUPP where the local file system can
 * only be written to.
 */
static int
zero_fast (bool punch, uint64_t count, uint64_t offset)
{
  int mode = (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) |
             FALLOC_FL_KEEP_SIZE;

  while (fallocate (vms_fd (image), mode, (off_t) offset,
                    (off_t) count) == -1) {
    if (errno == ENOSYS || errno == ENOTSUP)
      return -EOPNOTSUPP;
    if (errno != EINTR)
      return -errno;
  }
  return 0;
}

static int
zero_slow (uint64_t count, uint64_t offset)
{
  static const char zeroes[64 << 10];
  int r = 0;

  while (count > 0 && r == 0) {
    uint64_t piece = count < sizeof zeroes ? count : sizeof zeroes;

    r = write_local (zeroes, piece, offset);
    offset += piece;
    count -= piece;
  }
  return r;
}

static int
vmstream_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  int r;

  r = acquire (handle, VMS_DISCARD, offset, count);
  if (r < 0)
    return failed (r, "zero", count, offset);
  r = zero_fast (flags & NBDKIT_FLAG_MAY_TRIM, count, offset);
  if (r == -EOPNOTSUPP && !(flags & NBDKIT_FLAG_FAST_ZERO))
    r = zero_slow (count, offset);
  vms_block_done (image, VMS_DISCARD, offset, count, r);
  if (r == -EOPNOTSUPP) { /* an answer, not a failure */
    errno = EOPNOTSUPP;
    return -1;
  }
  if (r < 0)
    return failed (r, "zero", count, offset);
  return flags & NBDKIT_FLAG_FUA ? flush (handle) : 0;
}

/* A hint, so nothing is fetched for it: what does not fill a block stays. */
static int
vmstream_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const uint64_t size = vms_size (image), block = vms_block_size (image);
  const uint64_t begin = (offset + block - 1) / block * block;
  uint64_t end = offset + count;
  int r;

  if (end < size) /* the last block may be a short one */
    end = end / block * block;
  if (begin < end) {
    r = acquire (handle, VMS_DISCARD, begin, end - begin);
    if (r < 0)
      return failed (r, "trim", end - begin, begin);
    r = zero_fast (true, end - begin, begin);
    vms_block_done (image, VMS_DISCARD, begin, end - begin, r);
    if (r < 0 && r != -EOPNOTSUPP)
      return failed (r, "trim", end - begin, begin);
  }
  return flags & NBDKIT_FLAG_FUA ? flush (handle) : 0;
}

/* The client says that it will read: the blocks come, nothing is copied.  It
 * gets its answer when they are there, so that it cannot ask for a whole image
 * at once.
 */
static int
vmstream_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  int r;

  (void) flags;
  r = acquire (handle, VMS_READ, offset, count);
  return r < 0 ? failed (r, "cache", count, offset) : 0;
}

/* What the local file has at offset, which is resident: the type, and in
 * *length, at most what it was before, how far it goes.
 */
static uint32_t
local_extent (uint64_t offset, uint64_t *length)
{
  uint32_t type = 0;
  off_t to = lseek (vms_fd (image), (off_t) offset, SEEK_DATA);

  if (to == -1 && errno == ENXIO) /* no data up to the end of the file */
    return NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
  if (to > (off_t) offset)
    type = NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
  else if (to != -1)
    to = lseek (vms_fd (image), (off_t) offset, SEEK_HOLE);
  /* -1: the file system cannot tell, so it is data. */
  if (to != -1 && (uint64_t) to - offset < *length)
    *length = (uint64_t) to - offset;
  return type;
}

/* What is absent looks like a hole in the local file, and is anything but
 * zeroes: only what is resident may be looked at.  A resident block stays
 * resident, so nothing can change between the two looks.
 */
static int
vmstream_extents (void *handle, uint32_t count, uint64_t offset,
                  uint32_t flags, struct nbdkit_extents *extents)
{
  const uint64_t begin = offset, end = offset + count;
  uint32_t type, first_type = 0;
  uint64_t length;
  int resident;

  (void) handle;
  while (offset < end) {
    resident = vms_resident (image, offset, end - offset, &length);
    if (resident < 0)
      return failed (resident, "describe", end - offset, offset);
    type = resident ? local_extent (offset, &length) : 0;
    if (offset == begin)
      first_type = type;
    else if ((flags & NBDKIT_FLAG_REQ_ONE) && type != first_type)
      break;
    if (nbdkit_add_extent (extents, offset, length, type) == -1)
      return -1;
    offset += length;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name               = "vmstream",
  .longname           = "nbdkit vmstream plugin",
  .version            = HEADER_VERSION,
  .description        = "serve a disk image that still lies on a web server",
  .load               = vmstream_load,
  .unload             = vmstream_unload,
  .config             = vmstream_config,
  .config_complete    = vmstream_config_complete,
  .config_help        = vmstream_config_help,
  .magic_config_key   = "url",
  .dump_plugin        = vmstream_dump_plugin,
  .get_ready          = vmstream_get_ready,
  .after_fork         = vmstream_after_fork,
  .cleanup            = vmstream_cleanup,
  .open               = vmstream_open,
  .close              = vmstream_close,
  .get_size           = vmstream_get_size,
  .block_size         = vmstream_block_size,
  .export_description = vmstream_export_description,
  .can_write          = vmstream_can_write,
  .can_multi_conn     = vmstream_can_multi_conn,
  .can_fua            = vmstream_can_fua,
  .can_cache          = vmstream_can_cache,
  .can_fast_zero      = vmstream_can_fast_zero,
  .can_extents        = vmstream_can_extents,
  .pread              = vmstream_pread,
  .pwrite             = vmstream_pwrite,
  .flush              = vmstream_flush,
  .trim               = vmstream_trim,
  .zero               = vmstream_zero,
  .cache              = vmstream_cache,
  .extents            = vmstream_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
