//! What the kernel says of this process, read when asked: memory, processor time, start.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// `/proc/<pid>/stat` counts in these, whatever the kernel's own tick: USER_HZ is 100 on all our architectures.
const TICKS_PER_SECOND: f64 = 100.0;

/// The names are those of every Prometheus client library.
#[derive(Debug)]
pub(super) struct Process {
    start: Duration,
}

impl Process {
    /// Of this process, which has just begun.
    pub(super) fn new() -> Self {
        let start = jiff::Timestamp::now().as_duration();
        Self {
            start: start.unsigned_abs(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut put = |name, help, metric: &dyn Encode| metric.put(&mut encoder, name, help);
        put(
            "process_start_time_seconds",
            "When the process began, since the epoch",
            &ConstGauge::new(self.start.as_secs_f64()),
        )?;
        // absent where there is no /proc
        if let Some(bytes) = read("/proc/self/status")
            .as_deref()
            .and_then(resident_bytes)
        {
            put(
                "process_resident_memory_bytes",
                "Memory that the process has in RAM",
                &ConstGauge::new(bytes),
            )?;
        }
        if let Some(seconds) = read("/proc/self/stat").as_deref().and_then(cpu_seconds) {
            put(
                "process_cpu_seconds",
                "Processor time spent, user and system",
                &ConstCounter::new(seconds),
            )?;
        }
        Ok(())
    }
}

trait Encode {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Encode for M {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), std::fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, self.metric_type())?;
        self.encode(metric)
    }
}

fn read(path: &str) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::debug!(path, %error, "process metric left out");
            None
        }
    }
}

/// VmRSS of a `/proc/<pid>/status`.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// utime and stime of a `/proc/<pid>/stat`: fields 14 and 15; the second field may hold blanks and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_from_proc() {
        assert_eq!(
            resident_bytes("Name:\tx\nVmHWM:\t    9 kB\nVmRSS:\t    1234 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(resident_bytes("Name:\tkthread\n"), None);
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 900 0 3 0 150 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("42 (a"), None);
        assert!(
            read("/proc/self/status")
                .as_deref()
                .and_then(resident_bytes)
                > Some(0)
        );
        assert!(
            read("/proc/self/stat")
                .as_deref()
                .and_then(cpu_seconds)
                .is_some()
        );
    }
}
