//! Uploads a published image to a bucket.
//!
//! The pointer goes last, and only when everything it names is there, so a reader sees the old version or the new one here as
//! well. The other files are called by their hashes and never change; one that lies there already, as long and of
//! the same image, is not sent again, so an upload that was cut off goes on where it stopped, file by file.
//!
//! A bucket has no sparse files: holes of the image are sent, and cost what zeroes cost there. Readers never ask for them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rusty_s3::S3Action;
use rusty_s3::actions::CreateMultipartUpload;
use vmstream::error::{Error, Result, errno};
use vmstream::source::published::Pointer;

use super::{Bucket, Label, ROOT_HEADER};

/// What has its own hash in its name can be kept for ever: a year is as long as caches know.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// A new version is seen after a minute.
const SHORT: &str = "public, max-age=60";
/// Smallest part of a large object, in bytes; services want 5 MiB at least. A cut link costs one of them.
const PART_BYTES: u64 = 16 << 20;
/// Most parts of an object: services take 10,000.
const PARTS_MAX: u64 = 9_000;
/// Parts underway at once: enough for a link of some round trip, and 64 MiB of memory.
const LANES: usize = 4;

/// Told how many bytes of how many are there; answers false to give up.
pub type Watch<'a> = &'a (dyn Fn(u64, u64) -> bool + Sync);

/// Uploads the image that is published under `name` in the directory `site`. Answers the URL of the pointer there.
///
/// # Errors
/// Those of reading the site and of the bucket; ECANCELED when `watch` says so.
pub fn upload(site: &Path, name: &str, bucket: &Bucket, watch: Watch<'_>) -> Result<String> {
    let path = site.join(format!("{name}.vmp"));
    let shown = path.display();
    let text = std::fs::read(&path).map_err(|e| Error::io(format_args!("cannot read {shown}"), e))?;
    let pointer = Pointer::parse(&text).map_err(|e| Error::new(e.errno(), format!("{shown}: {e}")))?;
    let root = pointer.root.to_string();
    let mut files = vec![(pointer.image, pointer.geometry.size()), (pointer.tree.name, pointer.tree.bytes)];
    files.extend(pointer.packs.map(|packs| (packs.name, packs.bytes)));
    let all = files.iter().map(|file| file.1).sum();
    let sent = AtomicU64::new(0);
    let label = Label { cache: IMMUTABLE, kind: "application/octet-stream", root: Some(&root) };
    for (file, bytes) in files {
        let job = Job { bucket, label: &label, name: &file, sent: &sent, all, watch };
        job.check()?;
        if bucket.find(&file)?.is_some_and(|there| there.bytes == bytes && there.root.as_deref() == Some(&root)) {
            log::info!("{}{file} is there already", bucket.address);
            sent.fetch_add(bytes, Ordering::Relaxed);
        } else {
            job.send(&site.join(&file), bytes)?;
        }
    }
    // The last moment to turn back: from here on readers may see the new version.
    if !watch(sent.load(Ordering::Relaxed), all) {
        return Err(Error::new(errno::ECANCELED, format!("stopped before {name} was put in place")));
    }
    let label = Label { cache: SHORT, kind: "text/plain; charset=utf-8", root: Some(&root) };
    let name = format!("{name}.vmp");
    bucket.put(&name, &text, &label)?;
    Ok(bucket.url(&name))
}

/// One file on its way.
struct Job<'a> {
    bucket: &'a Bucket,
    label: &'a Label<'a>,
    name: &'a str,
    sent: &'a AtomicU64,
    all: u64,
    watch: Watch<'a>,
}

impl Job<'_> {
    fn send(&self, path: &Path, bytes: u64) -> Result<()> {
        let shown = path.display();
        let failed = |e| Error::io(format_args!("cannot read {shown}"), e);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length != bytes {
            let text = format!("{shown} has {length} bytes, but its pointer says {bytes}: publish the image again");
            return Err(Error::new(errno::EIO, text));
        }
        let read = |offset: u64, length: u64| {
            let mut part = vec![0; length as usize];
            file.read_exact_at(&mut part, offset).map_err(failed)?;
            Ok::<_, Error>(part)
        };
        if bytes <= PART_BYTES {
            self.bucket.put(self.name, &read(0, bytes)?, self.label)?;
            return self.count(bytes);
        }
        self.in_parts(bytes, &read)
    }

    /// Sends a large object: parts, several at once, and then word that these are all.
    fn in_parts(&self, bytes: u64, read: &(dyn Fn(u64, u64) -> Result<Vec<u8>> + Sync)) -> Result<()> {
        let key = self.bucket.key(self.name);
        let upload = self.begin(&key)?;
        let part_bytes = part_bytes(bytes);
        let parts = bytes.div_ceil(part_bytes);
        let next = AtomicU64::new(0);
        let tags = Mutex::new(vec![String::new(); parts as usize]);
        let failure = Mutex::new(None);
        let lane = || {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return;
                }
                let offset = part * part_bytes;
                let length = part_bytes.min(bytes - offset);
                let sent = read(offset, length)
                    .and_then(|content| self.part(&key, &upload, part as u16 + 1, &content))
                    .and_then(|tag| self.count(length).map(|()| tag));
                match sent {
                    Ok(tag) => tags.lock().unwrap_or_else(PoisonError::into_inner)[part as usize] = tag,
                    Err(error) => {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        // The others stop after what they are at.
                        next.store(parts, Ordering::Relaxed);
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..LANES).for_each(|_| drop(scope.spawn(lane))));
        let tags = tags.into_inner().unwrap_or_else(PoisonError::into_inner);
        let outcome = match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => self.complete(&key, &upload, &tags),
            Some(error) => Err(error),
        };
        if outcome.is_err() {
            // Parts without an object cost money and are seen by nobody.
            let action = self.bucket.signer.abort_multipart_upload(Some(&self.bucket.credentials), &key, &upload);
            if let Err(refusal) = self.bucket.send_once(&action, &[], &[], self.name) {
                log::warn!("parts may be left over: {refusal}");
            }
        }
        outcome
    }

    fn begin(&self, key: &str) -> Result<String> {
        let mut action = self.bucket.signer.create_multipart_upload(Some(&self.bucket.credentials), key);
        let root = self.label.root.unwrap_or_default();
        action.headers_mut().insert(ROOT_HEADER, root.to_owned());
        let headers = [(ROOT_HEADER, root), ("cache-control", self.label.cache), ("content-type", self.label.kind)];
        let answer = self.bucket.send(&action, &headers, &[], self.name)?;
        let text = Bucket::text(answer, self.name)?;
        let answer = CreateMultipartUpload::parse_response(&text).map_err(|e| self.nonsense(&e.to_string()))?;
        Ok(answer.upload_id().to_owned())
    }

    /// Sends a part; answers what the service calls it.
    fn part(&self, key: &str, upload: &str, number: u16, content: &[u8]) -> Result<String> {
        let action = self.bucket.signer.upload_part(Some(&self.bucket.credentials), key, number, upload);
        let answer = self.bucket.send(&action, &[], content, self.name)?;
        let tag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
        tag.map(str::to_owned).ok_or_else(|| self.nonsense("a part without an ETag"))
    }

    fn complete(&self, key: &str, upload: &str, tags: &[String]) -> Result<()> {
        let tags = tags.iter().map(String::as_str);
        let (signer, who) = (&self.bucket.signer, Some(&self.bucket.credentials));
        let action = signer.complete_multipart_upload(who, key, upload, tags.clone());
        let body = signer.complete_multipart_upload(who, key, upload, tags).body();
        let answer = self.bucket.send(&action, &[], body.as_bytes(), self.name)?;
        // This one request may fail although its status says that it did not.
        let text = Bucket::text(answer, self.name)?;
        if text.contains("<Error>") { Err(self.nonsense("its parts could not be put together")) } else { Ok(()) }
    }

    fn nonsense(&self, what: &str) -> Error {
        let text = format!("{}{}: {what}: try again, or ask whoever runs the service", self.bucket.address, self.name);
        Error::new(errno::EPROTO, text)
    }

    fn count(&self, bytes: u64) -> Result<()> {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.check()
    }

    fn check(&self) -> Result<()> {
        if (self.watch)(self.sent.load(Ordering::Relaxed), self.all) {
            return Ok(());
        }
        Err(Error::new(errno::ECANCELED, format!("stopped while {} was sent", self.name)))
    }
}

/// Length of the parts of an object, in bytes: whole mebibytes, and not too many parts.
fn part_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20).max(PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_object_has_too_many_parts() {
        for bytes in [PART_BYTES + 1, 1 << 34, 1 << 40, 5 << 40] {
            let part = part_bytes(bytes);
            assert!(part >= PART_BYTES && part.is_multiple_of(1 << 20) && bytes.div_ceil(part) <= PARTS_MAX, "{bytes}");
        }
        assert_eq!(part_bytes(1 << 30), PART_BYTES);
    }
}
