//! How many seats a request takes, and for how long after its end: upstream's work estimators.

use std::time::Duration;

/// Memory that one seat of a list stands for.
const BYTES_PER_SEAT: u64 = 100_000;
/// A list out of the cache is streamed: it takes no more memory than this.
const STREAMED_BYTES: u64 = 1_000_000;
/// Size of an object nobody knows.
const MAX_OBJECT: u64 = 1_500_000;
/// Most seats of a list and of a write.
const MAX_LIST_SEATS: u64 = 100;
const MAX_WRITE_SEATS: u64 = 10;
/// Watchers that one seat serves after a write.
const WATCHERS_PER_SEAT: f64 = 10.0;
/// Time that the watchers' work takes.
const EVENT_TIME: Duration = Duration::from_millis(5);

/// Seats and time of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Seats while it is served.
    pub(super) initial: usize,
    /// Seats after its end.
    pub(super) last: usize,
    /// Time that these are kept.
    pub(super) after: Duration,
}

impl Work {
    pub(super) fn seats(&self) -> usize {
        self.initial.max(self.last)
    }
}

/// What a list reads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ListWork {
    /// Objects of the resource.
    pub(crate) objects: u64,
    /// Bytes of all of them.
    pub(crate) bytes: u64,
    /// `limit`, 0 for none.
    pub(crate) limit: u64,
    /// One object is asked for by name.
    pub(crate) single: bool,
    /// Labels or fields are selected by.
    pub(crate) selects: bool,
    /// The cache answers.
    pub(crate) from_cache: bool,
}

/// What kind of work a request is.
pub(crate) enum Estimate<'a> {
    /// One seat.
    Small,
    /// A list or the beginning of a watch.
    List(ListWork),
    /// A write, with the number of watchers that its event goes to, looked up when it is needed.
    Write(&'a (dyn Fn() -> usize + Sync)),
}

fn list_seats(list: &ListWork) -> u64 {
    let average = match (list.objects, list.bytes) {
        (0, _) => 0,
        (_, 0) => MAX_OBJECT,
        (objects, bytes) => bytes / objects,
    };
    let limited = if list.limit > 0 { list.limit.min(list.objects) } else { list.objects };
    let objects = match list {
        ListWork { single: true, .. } => 1,
        ListWork { from_cache: false, selects: true, .. } => limited.max(list.objects / 2),
        _ => limited,
    };
    let bytes = objects.saturating_mul(average);
    let bytes = if list.from_cache { bytes.min(STREAMED_BYTES) } else { bytes };
    bytes.div_ceil(BYTES_PER_SEAT)
}

impl Estimate<'_> {
    /// The work in a level that gives one request at most so many seats (0: it does not say).
    pub(super) fn work(&self, max_seats: u64) -> Work {
        let most = |limit: u64| if max_seats == 0 { limit } else { max_seats.min(limit) };
        let small = Work { initial: 1, last: 0, after: Duration::ZERO };
        match self {
            Estimate::Small => small,
            Estimate::List(list) => {
                let seats = list_seats(list).clamp(1, most(MAX_LIST_SEATS).max(1));
                Work { initial: usize::try_from(seats).unwrap_or(1), ..small }
            }
            Estimate::Write(watchers) => {
                let watchers = watchers() as f64;
                if watchers < WATCHERS_PER_SEAT {
                    return small;
                }
                let wide = (watchers / WATCHERS_PER_SEAT).ceil();
                let last = wide.min(most(MAX_WRITE_SEATS).max(1) as f64);
                // The work stays the same when it is spread over fewer seats.
                Work { initial: 1, last: last as usize, after: EVENT_TIME.mul_f64(wide / last) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_by_their_size() {
        let list = |objects, bytes, limit| ListWork {
            objects,
            bytes,
            limit,
            from_cache: true,
            ..ListWork::default()
        };
        let seats = |list: ListWork, max| Estimate::List(list).work(max).initial;
        assert_eq!(seats(list(0, 0, 0), 10), 1);
        assert_eq!(seats(list(100, 150_000, 0), 10), 2);
        assert_eq!(seats(list(10_000, 30_000_000, 0), 10), 10);
        assert_eq!(seats(list(10_000, 30_000_000, 0), 0), 10);
        assert_eq!(seats(list(10_000, 30_000_000, 0), 3), 3);
        assert_eq!(seats(list(10_000, 30_000_000, 50), 10), 2);
        assert_eq!(seats(ListWork { single: true, ..list(10_000, 30_000_000, 0) }, 10), 1);
        assert_eq!(seats(ListWork { from_cache: false, ..list(10_000, 30_000_000, 0) }, 0), 100);
        let selecting = ListWork { from_cache: false, selects: true, ..list(1000, 3_000_000, 10) };
        assert_eq!(seats(selecting, 0), 15);
    }

    #[test]
    fn writes_by_their_watchers() {
        let work = |watchers: usize, max| Estimate::Write(&move || watchers).work(max);
        assert_eq!(work(9, 10), Work { initial: 1, last: 0, after: Duration::ZERO });
        assert_eq!(work(10, 10), Work { initial: 1, last: 1, after: EVENT_TIME });
        assert_eq!(work(95, 10), Work { initial: 1, last: 10, after: EVENT_TIME });
        assert_eq!(work(1000, 10), Work { initial: 1, last: 10, after: EVENT_TIME * 10 });
        assert_eq!(work(1000, 5).last, 5);
    }
}
