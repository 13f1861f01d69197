//! Checks the output of each part of the demo.

use anyhow::{Result, bail};

use crate::guest;
use crate::host::Options;

/// The release that was asked for.
pub(super) fn xen(text: &str, options: &Options) -> Result<String> {
    let mut fields = text.lines().filter_map(|l| l.split_once(':'));
    match fields.find(|(name, _)| name.trim() == "xen_version") {
        Some((_, version)) if version.trim().starts_with(options.release.name) => {
            Ok(format!("Xen {}", version.trim()))
        }
        Some((_, version)) => bail!("Xen {}, not {}", version.trim(), options.release.name),
        None => bail!("xl info says no xen_version"),
    }
}

/// The guest was made.
pub(super) fn create(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl create: status 0") {
        bail!("xl create failed");
    }
    Ok("xl create of the guest with its stubdomain".to_owned())
}

/// The names in what `xl list` printed.
fn names(text: &str) -> Vec<&str> {
    let rows = text.lines().skip_while(|l| !l.starts_with("Name ")).skip(1);
    rows.filter_map(|l| {
        let mut words = l.split_whitespace();
        let name = words.next()?;
        // The domain's number, its memory and its processors make a row of it.
        let numbers = words
            .take(3)
            .map(str::parse::<u64>)
            .collect::<Result<Vec<_>, _>>();
        numbers.is_ok_and(|n| n.len() == 3).then_some(name)
    })
    .collect()
}

/// The guest and its stubdomain are there.
pub(super) fn list(text: &str, _: &Options) -> Result<String> {
    let names = names(text);
    for wanted in ["Domain-0", "hvm", "hvm-dm"] {
        if !names.contains(&wanted) {
            bail!("xl list has no {wanted}");
        }
    }
    Ok("xl list: hvm and its stubdomain hvm-dm".to_owned())
}

/// No QEMU, but a process of ours, serves the consoles.
pub(super) fn consoles(text: &str, _: &Options) -> Result<String> {
    let served = text
        .lines()
        .any(|l| l.starts_with("process ") && l.contains("stubdm-run consoled "));
    if !served {
        bail!("no process of ours serves the stubdomain's consoles");
    }
    if !text
        .lines()
        .any(|l| l == "processes in ps that have qemu in their line: 0")
    {
        bail!("ps shows a QEMU in dom0");
    }
    let memory = text
        .lines()
        .find_map(|l| l.strip_prefix("its resident memory: "));
    let Some(memory) = memory else {
        bail!("its memory is not known");
    };
    Ok(format!(
        "no QEMU in dom0: stubdm-run consoled serves the consoles with {memory}"
    ))
}

/// The disk is as it was made, and time passes.
pub(super) fn guest_answers(text: &str, _: &Options) -> Result<String> {
    let disk = guest::disk_line();
    if !text.lines().any(|l| l.contains(&disk)) {
        bail!("the guest's console has no line \"{disk}\"");
    }
    let alive = text
        .lines()
        .find(|l| l.contains("alive second=2") && l.contains("disk=ok"));
    let Some(alive) = alive else {
        bail!("the guest's clock and disk did not go on")
    };
    Ok(format!("the guest's own line: \"{}\"", alive.trim()))
}

/// Both domains are gone.
pub(super) fn save(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl save: status 0") {
        bail!("xl save failed");
    }
    let names = names(text);
    if names != ["Domain-0"] {
        bail!("domains after the save: {}", names.join(", "));
    }
    Ok("xl save: guest and stubdomain are in a file and gone".to_owned())
}

/// It continues after where it was.
pub(super) fn restore(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl restore: status 0") {
        bail!("xl restore failed");
    }
    let Some((_, alive)) = text.lines().find_map(|l| l.split_once("alive second=")) else {
        bail!("the restored guest says nothing");
    };
    let second = alive.split_whitespace().next().unwrap_or_default();
    // It was seen at second 2 before it was saved; one started again would begin with 1.
    if second.parse::<u32>().map_or(true, |second| second <= 2) || !alive.contains("disk=ok") {
        bail!("the restored guest says: alive second={alive}");
    }
    Ok(format!(
        "xl restore: the guest goes on at second {second}, its disk is what it was"
    ))
}

/// The guest prints which hosts answered, and dom0's kernel from which it received something.
pub(super) fn network(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl create: status 0") {
        bail!("xl create of the second guest failed");
    }
    let names = names(text);
    for wanted in ["hvm", "hvm-dm", "net", "net-dm"] {
        if !names.contains(&wanted) {
            bail!("xl list has no {wanted}");
        }
    }
    let card = "00:16:3e:77:01:0a";
    let begin = format!("xen-guest: net0 mac={card} ");
    let Some(line) = text.lines().find(|l| l.contains(&begin)) else {
        bail!("the second guest says nothing of its card");
    };
    if !line.contains("reply=ok from=02:00:00:77:00:01 echo=ok") {
        bail!("the second guest says: {}", line.trim());
    }
    if !text
        .lines()
        .any(|l| l.starts_with("10.77.1.10 ") && l.contains(card))
    {
        bail!("dom0 has not heard the guest's card");
    }
    Ok(format!("the second guest's own line: \"{}\"", line.trim()))
}

/// libxl and a person are answered.
pub(super) fn qmp(text: &str, _: &Options) -> Result<String> {
    if !text
        .lines()
        .any(|l| l.starts_with("process ") && l.contains("qmp-vchan"))
    {
        bail!("no process of ours carries QMP for libxl");
    }
    if !text.lines().any(|l| l.trim() == "VM status: running") {
        bail!("libxl got no answer");
    }
    let Some(version) = text
        .lines()
        .find(|l| l.contains("\"qemu\"") && l.contains("\"major\""))
    else {
        bail!("stubdm-run qmp got no answer");
    };
    Ok(format!(
        "QMP answers over vchan: \"VM status: running\", {}",
        version.trim()
    ))
}

/// Nothing is left.
pub(super) fn destroy(text: &str, _: &Options) -> Result<String> {
    if !text.lines().any(|l| l == "xl destroy: status 0") {
        bail!("xl destroy failed");
    }
    let names = names(text);
    if names != ["Domain-0"] {
        bail!("domains at the end: {}", names.join(", "));
    }
    if let Some(process) = text.lines().find(|l| l.starts_with("process ")) {
        bail!("still running: {process}");
    }
    if !text
        .lines()
        .any(|l| l.starts_with("xenstore: ") && l.ends_with("the same as before"))
    {
        bail!("xenstore nodes were left");
    }
    Ok("destroyed: no domain, no xenstore node, no process of ours is left".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    #[test]
    fn a_leftover_of_any_kind_is_seen() {
        let good = "xl destroy: status 0\nName   ID Mem\nDomain-0   0  1 2 r 1.0\n\
                    xenstore: 20 nodes, the same as before\n";
        assert!(destroy(good, &options()).is_ok());
        let domain = good.replace("2 r 1.0\n", "2 r 1.0\n(null)  3 0 0 --ps-d 9\n");
        assert!(destroy(&domain, &options()).is_err());
        assert!(destroy(&format!("{good}process 7: stubdm-run x\n"), &options()).is_err());
        assert!(destroy(&good.replace("the same as before", ""), &options()).is_err());
    }

    #[test]
    fn a_restored_guest_must_go_on() {
        let said = |second| {
            format!("xl restore: status 0\nxen-guest: alive second={second} disk=ok irq=9\n")
        };
        assert!(restore(&said("5"), &options()).is_ok());
        for stale in ["1", "2", "x"] {
            assert!(restore(&said(stale), &options()).is_err(), "{stale}");
        }
        assert!(restore(&said("5").replace("=ok", "=bad"), &options()).is_err());
        assert!(restore(&said("5").replace("status 0", "status 1"), &options()).is_err());
    }

    #[test]
    fn an_answer_is_what_the_guest_and_dom0_have_received() {
        let good = "xl create: status 0\nName ID Mem VCPUs State\n\
                    hvm 3 128 1 r\nhvm-dm 4 400 1 r\nnet 5 128 1 r\nnet-dm 6 400 1 r\n\
                    xen-guest: net0 mac=00:16:3e:77:01:0a reply=ok from=02:00:00:77:00:01 echo=ok\n\
                    10.77.1.10 0x1 0x2 00:16:3e:77:01:0a * demo\n";
        assert!(network(good, &options()).is_ok());
        for part in [
            "status 0",
            "hvm 3 ",
            "net-dm 6 ",
            "reply=ok",
            "00:01 echo=ok",
            "\n10.77",
        ] {
            assert!(
                network(&good.replace(part, ""), &options()).is_err(),
                "{part}"
            );
        }
    }
}
