//! The requests for hash pages that nobody has begun yet.
//!
//! What lies near each other in the tree file goes in one request. How near is a question of who waits: pages that are
//! asked for at the same moment would travel at the same time anyway, so only a gap that costs less than the head of a
//! request is fetched along; but a request that stands in line would go a round trip later, for which a wider one is cheap.

use std::collections::VecDeque;

use crate::tree::{PageId, Tree};

/// Pages this near to each other come in one request, in bytes: what three pages have, which is less than what the head
/// of a request and its answer cost in time on any link.
const GAP_MAX: u64 = 8 << 10;
/// And this near when one of them would have to wait for the other, in bytes: at 25 Mbit/s 10 ms more, where a round trip
/// is less only in the same house.
const LINE_GAP_MAX: u64 = 32 << 10;
/// Longest request, in bytes: the pages of 50 MiB.
const JOB_BYTES_MAX: u64 = 256 << 10;

/// Pages that come in one request.
pub(super) struct Job(pub Vec<PageId>);

impl Job {
    /// Where in the file its pages begin and end, in bytes.
    pub fn extent(&self, tree: &Tree) -> (u64, u64) {
        let extents = || self.0.iter().map(|page| tree.extent(*page));
        let begin = extents().map(|(offset, _)| offset).min().unwrap_or(0);
        (begin, extents().map(|(offset, length)| offset + length).max().unwrap_or(begin))
    }
}

/// The line in which they stand.
#[derive(Default)]
pub(super) struct Line(VecDeque<Job>);

impl Line {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds these pages of `tree` as requests: what lies near each other together.
    pub fn join(&mut self, tree: &Tree, mut pages: Vec<PageId>) {
        pages.sort_by_key(|page| tree.extent(*page).0);
        let mut jobs: Vec<(u64, u64, Job)> = Vec::new();
        for page in pages {
            let (offset, length) = tree.extent(page);
            match jobs.last_mut() {
                Some((begin, end, job)) if offset - *end <= GAP_MAX && offset + length - *begin <= JOB_BYTES_MAX => {
                    *end = offset + length;
                    job.0.push(page);
                }
                _ => jobs.push((offset, offset + length, Job(vec![page]))),
            }
        }
        self.0.extend(jobs.into_iter().map(|(_, _, job)| job));
    }

    /// The place of the first request that has one of these pages.
    pub fn place_of(&self, pages: &[PageId]) -> Option<usize> {
        self.0.iter().position(|job| job.0.iter().any(|page| pages.contains(page)))
    }

    /// Takes the request at this place, with what lies near it: whoever stands in line would wait for a round trip at
    /// least.
    pub fn take(&mut self, tree: &Tree, at: usize) -> Option<Job> {
        let mut job = self.0.remove(at)?;
        let (mut begin, mut end) = job.extent(tree);
        self.0.retain(|other| {
            let (from, to) = other.extent(tree);
            let near = from <= end + LINE_GAP_MAX && begin <= to + LINE_GAP_MAX;
            let both = (begin.min(from), end.max(to));
            if !near || both.1 - both.0 > JOB_BYTES_MAX {
                return true;
            }
            (begin, end) = both;
            job.0.extend(&other.0);
            false
        });
        Some(job)
    }
}
