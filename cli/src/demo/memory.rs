//! The resident set of this process, and its peak over a while.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Between two samples.
const EVERY: Duration = Duration::from_millis(5);

/// Bytes of memory this process has in RAM now; none where the platform doesn't tell.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_bytes())
}

#[cfg(unix)]
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(not(unix))]
fn page_bytes() -> u64 {
    4096 // unused: there is no /proc
}

/// How much the resident set has grown since it was `before`.
pub(crate) fn growth_since(before: Option<u64>) -> Option<u64> {
    Some(resident_bytes()?.saturating_sub(before?))
}

/// The highest samples.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peak {
    /// Of the resident set, above where it was at the start.
    pub(crate) growth_bytes: Option<u64>,
    /// Of the account that was sampled beside it.
    pub(crate) account_bytes: u64,
}

/// A thread that samples until it is stopped or dropped.
pub(crate) struct PeakSampler {
    stop: Sender<()>,
    thread: JoinHandle<Peak>,
}

impl PeakSampler {
    pub(crate) fn start(account_bytes: impl Fn() -> u64 + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let before = resident_bytes();
        let thread = thread::spawn(move || {
            let mut peak = Peak::default();
            loop {
                peak.growth_bytes = peak.growth_bytes.max(growth_since(before));
                peak.account_bytes = peak.account_bytes.max(account_bytes());
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return peak;
                }
            }
        });
        PeakSampler { stop, thread }
    }

    /// The peak up to now.
    pub(crate) fn stop(self) -> Peak {
        drop(self.stop);
        self.thread.join().expect("the sampler does not panic")
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_seen_and_its_peak_kept() {
        const BYTES: usize = 64 << 20;
        let sampler = PeakSampler::start(|| 7);
        let touched = vec![1u8; BYTES];
        thread::sleep(4 * EVERY);
        drop(touched);
        let peak = sampler.stop();
        assert!(peak.growth_bytes.unwrap() > BYTES as u64 * 9 / 10);
        assert_eq!(peak.account_bytes, 7);
    }
}
