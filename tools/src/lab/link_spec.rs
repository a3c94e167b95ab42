//! What a link does to packets, in one direction, and the words for it.
//!
//! Pure. A link's description is a list of words such as `rate=100m delay=50ms loss=0.001`;
//! README of the words: [`LinkSpec::HELP`].

use super::error::LabError;

/// The smallest queue that is chosen for a link that names none: some full segments.
const QUEUE_BYTES_MIN: u64 = 64 << 10;

/// Memory of one direction without a word: two seconds at 1 Gbit/s.
const MEMORY_BYTES: u64 = 256 << 20;

/// One direction of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSpec {
    /// Bits per second of IP packets; 0: as fast as the machine.
    pub rate_bits: u64,
    /// Time that a packet is under way, one way.
    pub delay_ns: u64,
    /// How much the delay varies, evenly, up and down.
    pub jitter_ns: u64,
    /// Whether packets may overtake each other when the delay varies.
    pub reorders: bool,
    /// Share of the segments that are lost, 0 to 1.
    pub loss: f64,
    /// Mean number of segments lost in a row; 0: each is lost or not on its own.
    pub burst: f64,
    /// Bytes that wait for the rate before more are dropped; 0: without limit.
    pub queue_bytes: u64,
    /// Memory of this machine for packets that wait or are under way; what comes beyond is dropped
    /// and counted, so that no queue, and no long delay, eats the machine.
    pub memory_bytes: u64,
    /// Where the random numbers start: the same seed loses the same segments.
    pub seed: u64,
    /// False: everything is lost, and nobody is told.
    pub is_up: bool,
    /// When the link goes down, what is under way is lost too.
    pub flushes: bool,
}

impl Default for LinkSpec {
    fn default() -> Self {
        Self {
            rate_bits: 0,
            delay_ns: 0,
            jitter_ns: 0,
            reorders: false,
            loss: 0.0,
            burst: 0.0,
            queue_bytes: 0,
            memory_bytes: MEMORY_BYTES,
            seed: 1,
            is_up: true,
            flushes: false,
        }
    }
}

impl LinkSpec {
    /// The words, for the help of programs that take them.
    pub const HELP: &str = "\
  rate=100m|1g      bits per second of IP packets, each way; without it: unlimited
  delay=50ms        one way: the round trip takes twice that
  jitter=2ms        the delay varies by so much; reorder=1: packets may overtake each other
  loss=0.001        share of the segments that are lost; burst=N: N in a row on average
  queue=1.25m|40ms  bytes, or time at `rate`, that wait before more are dropped;
                    without it: what fits into one round trip; 0: without limit
  memory=64m        bytes of this machine for what waits and is under way, each way (256 MiB)
  seed=N            where the random numbers start
  up=0|1            0: a silent partition; flush=1: what is under way is lost too";

    /// Reads a whole description; words are separated by spaces or commas.
    ///
    /// # Errors
    /// A word is not understood.
    pub fn parse(words: &str) -> Result<Self, LabError> {
        let mut spec = Self::default();
        spec.apply(words)?;
        if !words.contains("queue=") {
            let round_trip = u128::from(spec.rate_bits) * u128::from(spec.delay_ns) * 2;
            let bytes = u64::try_from(round_trip / 8_000_000_000).unwrap_or(u64::MAX);
            spec.queue_bytes = if spec.rate_bits == 0 { 0 } else { bytes.max(QUEUE_BYTES_MIN) };
        }
        Ok(spec)
    }

    /// Changes what the words name and leaves the rest; the queue stays as large as it was.
    ///
    /// # Errors
    /// A word is not understood; then nothing is changed.
    pub fn apply(&mut self, words: &str) -> Result<(), LabError> {
        let mut next = self.clone();
        let mut queue = None;
        for word in words.split([' ', ',']).filter(|word| !word.is_empty()) {
            let bad = |why| LabError::Word { word: word.to_owned(), why };
            let (name, value) = word.split_once('=').ok_or_else(|| bad("needs a `=`"))?;
            let number = || count(value).ok_or_else(|| bad("is not a number"));
            let time = || time_ns(value).ok_or_else(|| bad("is not a time such as 20ms"));
            let switch = || switch(value).ok_or_else(|| bad("is neither 0 nor 1"));
            match name {
                "rate" => next.rate_bits = number()? as u64,
                "delay" => next.delay_ns = time()?,
                "jitter" => next.jitter_ns = time()?,
                "reorder" => next.reorders = switch()?,
                "loss" => next.loss = share(value).ok_or_else(|| bad("is not within 0 to 1"))?,
                "burst" => next.burst = number()?,
                "memory" => next.memory_bytes = number()? as u64,
                "queue" => queue = Some((word, value)),
                "seed" => next.seed = value.parse().map_err(|_| bad("is not a whole number"))?,
                "up" => next.is_up = switch()?,
                "flush" => next.flushes = switch()?,
                _ => return Err(bad("is no property of a link")),
            }
        }
        // A queue given as a time needs the rate, wherever that stands.
        if let Some((word, value)) = queue {
            let bytes = queue_bytes(value, next.rate_bits);
            let why = "is neither bytes nor a time";
            next.queue_bytes =
                bytes.ok_or_else(|| LabError::Word { word: word.to_owned(), why })?;
        }
        *self = next;
        Ok(())
    }
}

fn queue_bytes(value: &str, rate_bits: u64) -> Option<u64> {
    if !value.ends_with('s') {
        return count(value).map(|bytes| bytes as u64);
    }
    let bits = u128::from(time_ns(value)?) * u128::from(rate_bits) / 1_000_000_000;
    u64::try_from(bits / 8).ok()
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn share(value: &str) -> Option<f64> {
    value.parse().ok().filter(|share| (0.0..=1.0).contains(share))
}

/// A number with the decimal endings of networks.
fn count(value: &str) -> Option<f64> {
    let scale = match value.chars().last()? {
        'k' => 1e3,
        'm' => 1e6,
        'g' => 1e9,
        _ => return positive(value),
    };
    positive(&value[..value.len() - 1]).map(|number| number * scale)
}

/// Nanoseconds of a time such as `20ms`.
pub(super) fn time_ns(value: &str) -> Option<u64> {
    let units = [("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("s", 1e9)];
    let split = |(unit, scale)| value.strip_suffix(unit).map(|number| (number, scale));
    let (number, scale) = units.into_iter().find_map(split)?;
    positive(number).map(|number| (number * scale) as u64)
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood() {
        let words = "delay=20ms,queue=40ms,rate=1g jitter=1.5ms reorder=1 loss=0.01 burst=4 \
                     seed=7 up=0 flush=1 memory=64m";
        let expected = LinkSpec {
            rate_bits: 1_000_000_000,
            delay_ns: 20_000_000,
            jitter_ns: 1_500_000,
            reorders: true,
            loss: 0.01,
            burst: 4.0,
            queue_bytes: 5_000_000,
            memory_bytes: 64_000_000,
            seed: 7,
            is_up: false,
            flushes: true,
        };
        assert_eq!(LinkSpec::parse(words).unwrap(), expected);
    }

    #[test]
    fn without_a_word_the_queue_holds_one_round_trip() {
        assert_eq!(LinkSpec::parse("rate=100m delay=50ms").unwrap().queue_bytes, 1_250_000);
        assert_eq!(LinkSpec::parse("rate=1m").unwrap().queue_bytes, QUEUE_BYTES_MIN);
        assert_eq!(LinkSpec::parse("delay=50ms").unwrap().queue_bytes, 0);
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_was() {
        let mut spec = LinkSpec::parse("rate=1g delay=20ms").unwrap();
        spec.apply("rate=100m").unwrap();
        assert_eq!((spec.rate_bits, spec.queue_bytes), (100_000_000, 5_000_000));
        let before = spec.clone();
        for words in ["delay=1", "rate=-1", "loss=2", "up=2", "x=1", "rate", "delay=1ms queue=x"] {
            assert!(spec.apply(words).is_err(), "{words}");
            assert_eq!(spec, before, "{words}");
        }
    }
}
