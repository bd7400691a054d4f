//! Moments as texts: ISO 8601 in UTC. The kernel keeps times that no calendar of four digits has; those stand as the first or
//! the last moment that it has, and the exact seconds beside.

use jiff::Timestamp;

use crate::pax::Time;

/// `2001-02-03T04:05:06.123456789+00:00`, and whether that is the very moment.
pub fn iso(time: Time, digits: usize) -> (String, bool) {
    let exact = Timestamp::new(time.secs, time.nanos.cast_signed()).ok();
    let bound = if time.secs < 0 { FIRST } else { LAST };
    let (secs, nanos) = exact.map_or((bound, 0), |_| (time.secs, time.nanos));
    let is_within = (FIRST..=LAST).contains(&secs);
    let secs = secs.clamp(FIRST, LAST);
    let nanos = if is_within { nanos } else { 0 };
    let whole = Timestamp::new(secs, 0).map(|t| t.to_string()).unwrap_or_default();
    let whole = whole.trim_end_matches('Z');
    let part = format!("{nanos:09}");
    (format!("{whole}.{}+00:00", &part[..digits.clamp(1, 9)]), exact.is_some() && is_within)
}

/// From the first moment that Python's `datetime` and XML Schema can say (year 1) to the last that every zone can (end of
/// 9999, less a day).
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_128_000;

/// Microseconds since 1970, as Timesketch counts; bounded.
pub fn micros(time: Time) -> i64 {
    time.secs.clamp(FIRST, LAST).saturating_mul(1_000_000).saturating_add(i64::from(time.nanos / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_all_ages_have_a_text() {
        let at = |secs, nanos| iso(Time { secs, nanos }, 9);
        for (secs, nanos, text, exact) in [
            (0, 0, "1970-01-01T00:00:00.000000000+00:00", true),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999+00:00", true),
            (1 << 32, 5, "2106-02-07T06:28:16.000000005+00:00", true),
            (i64::MAX, 7, "9999-12-30T00:00:00.000000000+00:00", false),
            (i64::MIN, 7, "0001-01-01T00:00:00.000000000+00:00", false),
        ] {
            assert_eq!(at(secs, nanos), (text.to_owned(), exact), "{secs}");
        }
        assert_eq!(iso(Time { secs: 1, nanos: 123_456_789 }, 6).0, "1970-01-01T00:00:01.123456+00:00");
        assert_eq!(micros(Time { secs: -1, nanos: 500_000_000 }), -500_000);
        assert!(micros(Time { secs: i64::MAX, nanos: 0 }) > 0);
    }
}
