//! The rows as a table and as JSON. Text from the store may be a guest's: it is printed through
//! [`stubdm_qmp::text`].

use serde_json::{Value, json};
use stubdm_qmp::text::one_line;

use super::rows::GONE;
use super::{Process, Row, Screen};

/// The longest text from the store that is shown.
const TEXT: usize = 120;

pub(super) fn json(rows: &[Row]) -> Value {
    let process = |process: Option<Process>| {
        process.map(|process| {
            json!({
                "pid": process.pid,
                "alive": process.alive,
                "memory_kib": process.memory,
            })
        })
    };
    let all = rows.iter().map(|row| {
        json!({
            "guest": row.guest.as_u16(),
            "name": row.name,
            "stubdomain": row.stubdomain.as_u16(),
            "state": row.state,
            "proxy": process(row.proxy),
            "qmp": row.counters,
            "consoles": process(row.consoles),
            "console_bytes": row.console_bytes,
            "memory_kib": row.memory,
            "screen": row.screen.map(|screen| json!({
                "address": screen.address,
                "width": screen.size.map(|size| size.width),
                "height": screen.size.map(|size| size.height),
                "viewers": screen.viewers,
            })),
            "fault": row.fault,
        })
    });
    json!({ "guests": all.collect::<Vec<_>>() })
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<20} {:>5} {:>7} {:>5} {:>7} {:>6} {:>6} {:>8} {:>8} {:>7}  {}\n",
        "NAME",
        "GUEST",
        "STUBDOM",
        "MiB",
        "PROXY",
        "QMP",
        "DENIED",
        "LATENCY",
        "CONSOLES",
        "BYTES",
        "DEVICE MODEL"
    );
    for row in rows {
        let counted = |number: fn(&crate::proxy::counters::Counters) -> String| {
            or_none(row.counters.as_ref().map(number))
        };
        text += &format!(
            "{:<20} {:>5} {:>7} {:>5} {:>7} {:>6} {:>6} {:>8} {:>8} {:>7}  {}\n",
            or_none(row.name.as_deref().map(short)),
            row.guest.to_string(),
            row.stubdomain.to_string(),
            or_none(row.memory.map(|kib| (kib >> 10).to_string())),
            process(row.proxy),
            counted(|c| c.answered.saturating_add(c.failed).to_string()),
            counted(|c| c.denied.saturating_add(c.refused).to_string()),
            counted(|c| latency(c.latency_us)),
            process(row.consoles),
            or_none(row.console_bytes.map(bytes)),
            or_none(row.state.as_deref().map(short)),
        );
        for (what, process) in [("proxy", row.proxy), ("console server", row.consoles)] {
            let gone = process.filter(|process| !process.alive);
            let Some(process) = gone.filter(|_| row.state.as_deref() != Some(GONE)) else {
                continue;
            };
            let mend = match process.recorded {
                true => format!("stubdm-run restart {}", row.guest),
                false => "nothing starts it again while the guest runs".to_owned(),
            };
            text += &format!("  its {what} is gone: {mend}\n");
        }
        if let Some(screen) = row.screen {
            text += &format!("  its screen: {}\n", shown(screen));
        }
        if let Some(fault) = &row.fault {
            text += &format!("  not all could be read: {}\n", short(fault));
        }
    }
    text
}

fn shown(screen: Screen) -> String {
    let (ip, port) = (screen.address.ip(), screen.address.port());
    let size = screen
        .size
        .map(|size| format!("{}x{}", size.width, size.height));
    let viewers = screen.viewers.map(|count| match count {
        1 => "1 viewer".to_owned(),
        count => format!("{count} viewers"),
    });
    let size = size.unwrap_or_else(|| "no size named".to_owned());
    let viewers = viewers.unwrap_or_else(|| "viewers not known".to_owned());
    format!("{size}, {viewers}, VNC at {ip} port {port}")
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn short(text: &str) -> String {
    one_line(text).chars().take(TEXT).collect()
}

fn process(process: Option<Process>) -> String {
    or_none(process.map(|process| match process.alive {
        true => process.pid.to_string(),
        false => "gone".to_owned(),
    }))
}

fn latency(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        1..1_000 => format!("{micros} us"),
        1_000..10_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_240 => count.to_string(),
        10_240..10_485_760 => format!("{}K", count >> 10),
        _ => format!("{}M", count >> 20),
    }
}
