//! Runs `dwcp demo` as a user would and checks the object that it prints.
//!
//! The demonstration itself exits with 0 only if every page arrived; this step adds that
//! its figures are all there and can be true.

use crate::call::{Call, Stream};
use crate::context::Context;
use crate::error::TaskError;
use serde_json::Value;

/// Size of the region: small in CI, the demo's own default in a full run.
const SMALL: &str = "128MiB";
const FULL: &str = "1GiB";

/// The demo promises to end within a minute at full size on two free cores; CI's may be busy.
const DEMO_SECONDS: u64 = 300;
const BUILD_SECONDS: u64 = 1800;

/// Every figure that the object must have.
const FIGURES: [&str; 8] =
    ["rounds", "raw_bytes", "wire_bytes", "zstd1_bytes", "ratio", "seconds", "pause_ms", "pages"];

/// Figures that can't be zero when pages were moved.
const POSITIVE: [&str; 7] =
    ["rounds", "raw_bytes", "wire_bytes", "zstd1_bytes", "ratio", "seconds", "pages"];

/// Builds the binary and says where it is: in a full run as README command 1 builds it, else with
/// what the tests have built already, since an optimised build would take longer than all tests.
pub(crate) fn build(context: &Context) -> Result<&'static str, TaskError> {
    let (words, binary): (&[&str], _) = if context.full {
        (&["cargo", "build", "--locked", "--bin", "dwcp", "--release"], "target/release/dwcp")
    } else {
        (&["cargo", "build", "--locked", "--bin", "dwcp", "--workspace"], "target/debug/dwcp")
    };
    Call::new(words).within(BUILD_SECONDS).run(&context.root)?;
    Ok(binary)
}

/// The demo step.
pub(crate) fn run(context: &Context) -> Result<(), TaskError> {
    let binary = build(context)?;
    let size = if context.full { FULL } else { SMALL };
    let call = Call::new(&[binary, "demo", "--json", "--size", size]);
    let mut output = String::new();
    call.within(DEMO_SECONDS).run_with(&context.root, &mut |stream, line| match stream {
        Stream::Out => output.extend([line, "\n"]),
        Stream::Err => println!("{line}"),
    })?;
    let object: Value = serde_json::from_str(&output)
        .map_err(|source| TaskError::DemoForm { source, output: output.clone() })?;
    match fault(&object) {
        Some(fault) => Err(TaskError::Demo { fault, output }),
        None => {
            print!("{output}");
            Ok(())
        }
    }
}

/// The first thing that is wrong with the demo's object.
fn fault(object: &Value) -> Option<String> {
    if object["verified"] != Value::Bool(true) {
        return Some("`verified` is not true".to_owned());
    }
    for name in FIGURES {
        let Some(figure) = object[name].as_f64() else {
            return Some(format!("`{name}` is not a number"));
        };
        if figure < 0.0 || (POSITIVE.contains(&name) && figure == 0.0) {
            return Some(format!("`{name}` is {figure}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "verified": true, "rounds": 3, "raw_bytes": 9, "wire_bytes": 4, "zstd1_bytes": 5,
            "ratio": 2.25, "seconds": 0.5, "pause_ms": 0, "pages": 2,
        })
    }

    #[test]
    fn a_whole_object_passes() {
        assert_eq!(fault(&good()), None);
    }

    #[test]
    fn every_missing_or_absurd_figure_is_found() {
        for name in FIGURES {
            let mut object = good();
            object[name] = Value::Null;
            assert!(fault(&object).is_some_and(|fault| fault.contains(name)), "{name}");
            object[name] = json!(-1);
            assert!(fault(&object).is_some_and(|fault| fault.contains(name)), "{name}");
        }
        for verified in [json!(false), json!("true"), Value::Null] {
            let mut object = good();
            object["verified"] = verified;
            assert!(fault(&object).is_some());
        }
    }
}
