//! How long the parts of a network take to read or to make.
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

/// Name and version of the list's form.
pub const SCHEMA: &str = "netmig.net-times/1";

/// The parts in the order in which they were begun.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Times {
    /// [`SCHEMA`].
    schema: &'static str,
    /// Each part once.
    parts: Vec<Part>,
}

/// One part.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Part {
    /// Which: the name of its list in the document, or of a step.
    what: &'static str,
    /// Its length in ms.
    ms: f64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            parts: Vec::new(),
        }
    }
}

impl Times {
    /// Runs `f`, which belongs to `what`.
    pub fn part<T>(&mut self, what: &'static str, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = f();
        self.add(what, began.elapsed());
        done
    }

    /// Adds the parts of what ran beside.
    pub(super) fn take(&mut self, other: Self) {
        for Part { what, ms } in other.parts {
            self.add_ms(what, ms);
        }
    }

    fn add(&mut self, what: &'static str, took: Duration) {
        self.add_ms(what, took.as_secs_f64() * 1e3);
    }

    fn add_ms(&mut self, what: &'static str, ms: f64) {
        match self.parts.iter_mut().find(|part| part.what == what) {
            Some(part) => part.ms += ms,
            None => self.parts.push(Part { what, ms }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_comes_twice_is_one() {
        let mut times = Times::default();
        times.add("links", Duration::from_millis(2));
        times.add("routes", Duration::from_micros(500));
        let mut beside = Times::default();
        beside.add("links", Duration::from_millis(1));
        times.take(beside);
        let json = serde_json::to_value(&times).unwrap();
        let expected = serde_json::json!({
            "schema": "netmig.net-times/1",
            "parts": [{"what": "links", "ms": 3.0}, {"what": "routes", "ms": 0.5}],
        });
        assert_eq!(json, expected);
    }
}
