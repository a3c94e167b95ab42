//! Single values of the daemon's answers as text for people.
//!
//! Pure. An answer of a newer or older daemon may lack a field: it shows as "-", never as a guess.

use serde_json::Value;

/// What stands for a missing field.
const MISSING: &str = "-";

/// A field as text.
pub(super) fn text(object: &Value, field: &str) -> String {
    plain(&object[field])
}

/// A value as text: without quotes, lists with commas.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => MISSING.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A field that counts bytes.
pub(super) fn bytes(object: &Value, field: &str) -> String {
    object[field].as_u64().map_or_else(|| MISSING.to_owned(), human_bytes)
}

/// A field that counts milliseconds.
pub(super) fn millis(object: &Value, field: &str) -> String {
    object[field].as_f64().map_or_else(|| MISSING.to_owned(), |ms| format!("{ms:.1} ms"))
}

/// A length of time in its two largest units.
pub(super) fn seconds(object: &Value, field: &str) -> String {
    let Some(seconds) = object[field].as_f64() else { return MISSING.to_owned() };
    // Times of daemons are far below 2^52 seconds; the fraction is not shown.
    let whole = seconds as u64;
    match (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// The elements of a list field; none where the field is missing.
pub(super) fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object[field].as_array().into_iter().flatten()
}

/// What a migration warns of, one line each.
pub(super) fn warnings(object: &Value) -> impl Iterator<Item = String> {
    list(object, "warnings").map(|warning| {
        let [message, cure, code] = ["message", "cure", "code"].map(|field| text(warning, field));
        format!("warning: {message}: {cure} [{code}]")
    })
}

/// Bytes with three digits or so.
pub(super) fn human_bytes(count: u64) -> String {
    let mut scaled = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024.0 {
            let digits = usize::from(unit != "B" && scaled < 100.0);
            return format!("{scaled:.digits$} {unit}");
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.1} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn missing_fields_show_as_a_dash() {
        let object = json!({"a": null, "b": [1, "x"], "ms": 1.25, "up": 90061, "n": 1536});
        assert_eq!(text(&object, "none"), "-");
        assert_eq!(bytes(&object, "a"), "-");
        assert_eq!(text(&object, "b"), "1, x");
        assert_eq!(millis(&object, "ms"), "1.2 ms");
        assert_eq!(seconds(&object, "up"), "1 d 1 h");
        assert_eq!(bytes(&object, "n"), "1.5 KiB");
        assert_eq!(list(&object, "none").count(), 0);
    }
}
