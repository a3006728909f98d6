//! One line per comparison, and a verdict.

use std::fmt;

/// Prints comparisons and remembers those out of bounds.
pub struct Report {
    may_loosen: bool,
    recording: String,
    compared: usize,
    failed: Vec<String>,
}

impl fmt::Display for Report {
    /// The recording that is being compared.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.recording)
    }
}

impl Report {
    /// `may_loosen`: whether limits may follow what rounding does.
    pub fn new(may_loosen: bool) -> Self {
        Self {
            may_loosen,
            recording: String::new(),
            compared: 0,
            failed: Vec::new(),
        }
    }

    /// Whether limits may follow what rounding does.
    pub fn may_loosen(&self) -> bool {
        self.may_loosen
    }

    /// Starts the comparisons of a recording.
    pub fn enter(&mut self, recording: String) {
        self.recording = recording;
    }

    /// Prints one comparison and counts it.
    pub fn check(&mut self, what: &str, error: f64, limit: f64) {
        self.summarise(what, error, limit);
        self.count(what, error, limit);
    }

    /// Prints one comparison that is counted elsewhere.
    pub fn summarise(&self, what: &str, error: f64, limit: f64) {
        let verdict = if error <= limit { "ok" } else { "FAILED" };
        println!(
            "{}: {what}: {error:.2e} of {limit:.2e} {verdict}",
            self.recording
        );
    }

    /// Counts one comparison of many; prints it if it is out of bounds.
    pub fn count(&mut self, what: &str, error: f64, limit: f64) {
        self.compared += 1;
        // Not `error > limit`, which a NaN would pass.
        let within = error <= limit;
        if !within {
            self.failed.push(format!(
                "{}: {what}: {error:.2e} of {limit:.2e}",
                self.recording
            ));
        }
    }

    /// Says that something is not compared.
    pub fn skip(&self, what: &str) {
        println!("{}: not compared: {what}", self.recording);
    }

    /// # Panics
    /// If any comparison was out of bounds.
    pub fn finish(self) {
        println!(
            "{} comparisons, {} failed",
            self.compared,
            self.failed.len()
        );
        assert!(
            self.failed.is_empty(),
            "out of bounds:\n  {}",
            self.failed.join("\n  ")
        );
    }
}
