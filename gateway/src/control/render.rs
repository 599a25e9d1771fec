//! Says a status to a person.

use std::fmt::Write as _;

use super::Status;

/// A page of text.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let state = if status.draining {
        "draining"
    } else {
        "running"
    };
    line(
        &mut out,
        format_args!("{}: {state}, version {}", status.name, status.version),
    );
    for address in &status.listen {
        line(&mut out, format_args!("listens on {address}"));
    }
    if let Some(address) = status.metrics {
        line(
            &mut out,
            format_args!("metrics at http://{address}/metrics"),
        );
    }
    line(
        &mut out,
        format_args!(
            "{} connections of {} at most; {} came",
            status.connections, status.limit, status.accepted
        ),
    );
    line(&mut out, format_args!(""));
    line(
        &mut out,
        format_args!(
            "{:<32} {:>9} {:>9} {:>12} {:>15} {:>15}",
            "TENANT", "NOW", "AT MOST", "RELAYED", "BYTES UP", "BYTES DOWN"
        ),
    );
    for tenant in &status.tenants {
        let name = if tenant.name.is_empty() {
            "(none)"
        } else {
            &tenant.name
        };
        let limit = tenant
            .limit
            .map_or_else(|| "-".to_owned(), |l| l.to_string());
        line(
            &mut out,
            format_args!(
                "{name:<32} {:>9} {limit:>9} {:>12} {:>15} {:>15}",
                tenant.connections, tenant.relayed, tenant.bytes_up, tenant.bytes_down
            ),
        );
    }
    for (title, counts) in [("refused", &status.refused), ("ended", &status.ended)] {
        for (reason, count) in counts.iter().filter(|(_, count)| **count > 0) {
            line(&mut out, format_args!("{title} {reason}: {count}"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
    out.push('\n');
}
