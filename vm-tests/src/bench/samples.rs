//! Samples, and the rows that are kept of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Samples of one thing, in one unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The smallest; NaN if there is none.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest; NaN if there is none.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// The middle one, or the mean of the two in the middle; NaN if there is none.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match (sorted.get(half), half.checked_sub(1).and_then(|before| sorted.get(before))) {
            (Some(high), Some(low)) if sorted.len().is_multiple_of(2) => f64::midpoint(*low, *high),
            (Some(middle), _) => *middle,
            (None, _) => f64::NAN,
        }
    }

    /// `(max - min) / median`; NaN if there is none.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.max() - self.min()) / self.median()
    }

    /// Each sample divided by the one of the other that was taken with it.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// All that was measured, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Whether all that was asked for is in; false in the file of a run that was ended.
    pub complete: bool,
    /// Whether the numbers of samples are those of `--quick`.
    pub quick: bool,
    /// Where.
    pub host: Host,
    /// Debian suite and kernel of the guest.
    pub image: String,
    /// `qemu-system-x86_64 --version`, its first line.
    pub qemu: String,
    /// What executes instructions and what time is, a line for each clock that was measured.
    pub accelerators: BTreeMap<String, String>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// What was not measured, and why.
    pub notes: Vec<String>,
}

/// The machine that the harness runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// `model name` of /proc/cpuinfo.
    pub cpu: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Load averages over 1, 5 and 15 minutes before the first measurement.
    pub load_before: String,
    /// The same after the last one, our own machines included.
    pub load_after: String,
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// `boot`, `restore` and so on.
    pub measurement: String,
    /// What of it.
    pub what: String,
    /// What the numbers are.
    pub unit: Unit,
    /// The smallest sample.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// All, in the order in which they were taken.
    pub samples: Samples,
    /// What the median should be at most, in `unit`.
    pub target: Option<f64>,
    /// Whether it is.
    pub reached: Option<bool>,
}

impl Row {
    /// A row without a target.
    #[must_use]
    pub fn new(measurement: &str, what: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self {
            measurement: measurement.to_owned(),
            what: what.into(),
            unit,
            min: samples.min(),
            median: samples.median(),
            max: samples.max(),
            samples,
            target: None,
            reached: None,
        }
    }

    /// The same row with what its median should be at most.
    #[must_use]
    pub fn target(mut self, at_most: f64) -> Self {
        self.target = Some(at_most);
        self.reached = Some(self.median <= at_most);
        self
    }
}

/// What a [`Row`]'s numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// 2^20 bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// One thing divided by another of the same unit.
    #[serde(rename = "ratio")]
    Ratio,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// A number of things.
    #[serde(rename = "count")]
    Count,
}
