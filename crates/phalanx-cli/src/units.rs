//! Times and sizes as people write them.

use std::time::Duration;

/// `30s`, `500ms`, `5m`, `1h`, `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write a number with ms, s, m, h or d, as in 30s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{number}` is no whole number"))?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "that is too long".to_owned())
}

/// The same, or `never`.
pub(crate) fn duration_or_never(text: &str) -> Result<MaybeNever, String> {
    if text == "never" { Ok(MaybeNever(None)) } else { duration(text).map(|time| MaybeNever(Some(time))) }
}

/// A time limit that there may be none of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaybeNever(pub(crate) Option<Duration>);

/// `512MiB`, `512M` (the same), `1G`, or bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err("write a number with KiB, MiB or GiB, as in 512MiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{number}` is no whole number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too much".to_owned())
}

/// `SIGTERM`, `TERM` or its number.
pub(crate) fn signal(text: &str) -> Result<phalanx::Signal, String> {
    let known = text.parse::<phalanx::Signal>().ok();
    let known = known.or_else(|| phalanx::Signal::from_raw(text.parse().ok()?));
    known.ok_or_else(|| "write SIGTERM, SIGINT, SIGQUIT or another".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert!(duration_or_never("never").is_ok_and(|time| time.0.is_none()));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("1G"), Ok(1 << 30));
        assert_eq!(bytes("77"), Ok(77));
        for wrong in ["", "30", "s", "1.5h", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(bytes("1T").is_err() && bytes("18446744073709551615G").is_err());
        assert_eq!(signal("SIGINT"), Ok(phalanx::Signal::INT));
        assert_eq!(signal("15"), Ok(phalanx::Signal::TERM));
        assert!(signal("SIGNONE").is_err());
    }
}
