//! When a rejected client may come back: later while many are rejected, sooner when few are.

/// Longest time in seconds.
const MAX: i64 = 32;

/// Rejections of one level by second.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Second and rejections in it, older ones first; the last is the present.
    history: Vec<(i64, i64)>,
    retry_after: i64,
    /// When it was raised last.
    raised: i64,
}

impl Dropped {
    /// Notes a rejection in this second; the time to wait in seconds.
    pub(super) fn note(&mut self, now: i64) -> i64 {
        self.retry_after = self.retry_after.max(1);
        match self.history.last_mut() {
            Some((second, count)) if *second == now => *count += 1,
            _ => {
                self.update(now);
                self.history.push((now, 1));
                let keep = (2 * self.retry_after).min(MAX);
                self.history.retain(|(second, _)| now - second <= keep);
            }
        }
        self.retry_after
    }

    /// Doubles the time after three rejections for each of its seconds, takes one off after fewer than one.
    fn update(&mut self, now: i64) {
        let wait = self.retry_after;
        let recent: i64 =
            self.history.iter().filter(|(second, _)| now - second <= wait).map(|(_, count)| count).sum();
        if recent >= 3 * wait && now - self.raised >= wait {
            self.retry_after = (2 * wait).min(MAX);
            self.raised = now;
        } else if recent < wait && wait > 1 {
            self.retry_after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_grows_under_load_and_shrinks_after_it() {
        let mut dropped = Dropped { raised: -100, ..Dropped::default() };
        assert_eq!(dropped.note(0), 1);
        for second in 0..200 {
            for _ in 0..200 {
                dropped.note(second);
            }
        }
        assert_eq!(dropped.note(200), MAX);
        let mut last = MAX;
        for second in (300..3000).step_by(50) {
            let now = dropped.note(second);
            assert!(now <= last);
            last = now;
        }
        assert_eq!(last, 1);
    }
}
