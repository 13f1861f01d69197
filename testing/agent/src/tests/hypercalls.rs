//! Typed hypercalls against what the toolstack prints in the same second, and their refusal in a
//! domU.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xen_sys::privcmd::{
    DomainFlags, DomainInfo, Features, HvmParam, MemoryAccess, PortState, Privcmd, ShutdownReason,
    ViewId,
};
use xen_sys::{DomId, Error, Port, Xen};

use crate::guest;
use crate::host::{self, DOMU_NAME, Place, TestHost, command, host_release, soon};
use crate::suite::{Needs, Test};

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    let dom0 = |name: &str, body: fn(&TestHost) -> Result<()>| {
        Test::new(format!("hypercalls/{name}"), Needs::Dom0, body)
    };
    tests.push(dom0("interfaces", interfaces));
    tests.push(dom0("hypervisor", hypervisor));
    tests.push(dom0("machine", machine));
    tests.push(dom0("console_ring", console_ring));
    tests.push(dom0("power", super::assign::power));
    tests.push(dom0("raw", super::raw::raw));
    tests.push(dom0("buffers", super::buffers::buffers));
    tests.push(dom0(
        "without_hypercall_device",
        super::buffers::without_device,
    ));
    tests.push(dom0("no_domain", no_domain));
    tests.push(dom0("grant_copy", super::copy::grant_copy));
    tests.push(dom0("dmabuf", super::copy::dmabuf));
    tests.push(dom0("grant_limits", super::copy::grant_limits));
    tests.push(dom0("adopted_evtchn", super::copy::adopted_evtchn));
    tests.push(dom0("one_gntdev", super::copy::one_gntdev));
}

pub(super) fn add_unrestricted(tests: &mut Vec<Test>) {
    let needs = Needs::DomU(host::Privcmd::Unrestricted);
    let refused = |host: &TestHost| refused(host, "not permitted");
    tests.push(Test::new("hypercalls/xen_refuses_domu", needs, refused).opens_privcmd());
}

pub(super) fn add_refusing(tests: &mut Vec<Test>) {
    let needs = Needs::DomU(host::Privcmd::Refusing);
    let refused = |host: &TestHost| refused(host, "hypercalls refused");
    tests.push(Test::new("hypercalls/kernel_refuses_domu", needs, refused).opens_privcmd());
    for (name, body) in [
        ("domains", domains as fn(&TestHost) -> Result<()>),
        ("vcpu", vcpu),
        ("pause", pause),
        ("max_memory", max_memory),
        ("ports_and_grants", ports_and_grants),
        #[cfg(target_arch = "x86_64")]
        ("vcpu_context", super::context::vcpu_context),
        ("permissions", super::assign::permissions),
        ("pirq", super::assign::pirq),
        ("shutdown", shutdown),
        ("destroy", destroy),
    ] {
        tests.push(Test::new(format!("hypercalls/{name}"), needs, body));
    }
}

pub(super) fn add_guest(tests: &mut Vec<Test>) {
    for (name, body) in [
        ("altp2m", altp2m as fn(&TestHost) -> Result<()>),
        #[cfg(target_arch = "x86_64")]
        ("hvm_context", super::context::hvm_context),
        #[cfg(target_arch = "x86_64")]
        ("set_vcpu_context", super::context::set_vcpu_context),
        ("target", super::assign::target),
        ("reservation", super::raw::reservation),
    ] {
        tests.push(Test::new(format!("hypercalls/{name}"), Needs::Guest, body));
    }
    tests.push(Test::new("hypercalls/hvm_params", Needs::Guest, hvm_params));
    let foreign = super::foreign::foreign_memory;
    tests.push(Test::new(
        "hypercalls/foreign_memory",
        Needs::Guest,
        foreign,
    ));
    let resources = super::foreign::resources;
    tests.push(Test::new("hypercalls/resources", Needs::Guest, resources));
    let device_model = super::device_model::device_model;
    tests.push(Test::new(
        "hypercalls/device_model",
        Needs::Guest,
        device_model,
    ));
    let dying = super::device_model::dying;
    tests.push(Test::new(
        "hypercalls/device_model_of_a_dying_guest",
        Needs::Guest,
        dying,
    ));
    tests.push(Test::new(
        "hypercalls/device_model_operations",
        Needs::Guest,
        super::device_model::operations,
    ));
}

pub(super) fn privcmd() -> Result<Privcmd> {
    Ok(Privcmd::open(&Xen::open()?)?)
}

/// The lines `name : value` of `xl info`.
fn xl_info(option: &[&str]) -> Result<HashMap<String, String>> {
    let words: Vec<&str> = ["xl", "info"].iter().chain(option).copied().collect();
    let lines = command(&words)?;
    let pairs = lines.iter().filter_map(|line| line.split_once(':'));
    Ok(pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect())
}

/// Fails unless `xl info` prints `value` for `name`.
fn agrees(xl: &HashMap<String, String>, name: &str, value: impl ToString) -> Result<()> {
    let said = xl
        .get(name)
        .with_context(|| format!("`xl info` has no {name}"))?;
    let value = value.to_string();
    ensure!(
        *said == value.trim(),
        "{name}: xl says `{said}`, we `{value}`"
    );
    Ok(())
}

fn interfaces(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let seen = privcmd.interfaces()?;
    let expected = match host_release() {
        (4, 17) => 0x15,
        (4, 18) => 0x16,
        _ => 0x17,
    };
    println!("    domctl {:#x}, sysctl {:#x}", seen.domctl, seen.sysctl);
    ensure!((seen.domctl, seen.sysctl) == (expected, 0x15), "{seen:?}");
    Ok(())
}

fn hypervisor(_: &TestHost) -> Result<()> {
    let (privcmd, xl) = (privcmd()?, xl_info(&[])?);
    let version = privcmd.xen_version()?;
    agrees(&xl, "xen_major", version.major)?;
    agrees(&xl, "xen_minor", version.minor)?;
    agrees(&xl, "xen_extra", &version.extra)?;
    agrees(&xl, "xen_version", &version)?;
    agrees(&xl, "xen_caps", privcmd.capabilities()?)?;
    agrees(&xl, "xen_pagesize", privcmd.xen_page_size()?)?;
    let start = format!("virt_start={:#x}", privcmd.virt_start()?);
    agrees(&xl, "platform_params", start)?;
    agrees(&xl, "xen_changeset", privcmd.changeset()?)?;
    agrees(&xl, "xen_commandline", privcmd.command_line()?)?;
    let compiled = privcmd.compile_info()?;
    agrees(&xl, "cc_compiler", compiled.compiler)?;
    agrees(&xl, "cc_compile_by", compiled.by)?;
    agrees(&xl, "cc_compile_domain", compiled.domain)?;
    agrees(&xl, "cc_compile_date", compiled.date)?;
    let id = privcmd.build_id()?.context("no build ID")?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    agrees(&xl, "build_id", hex)?;
    let features = privcmd.features()?;
    ensure!(features.contains(Features::DOM0), "{features:?}");
    let own = privcmd.own_handle()?.to_string();
    ensure!(own == privcmd.domain_info(DomId::DOM0)?.handle.to_string());
    Ok(())
}

fn machine(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let (info, xl) = (privcmd.phys_info()?, xl_info(&["-n"])?);
    agrees(&xl, "nr_cpus", info.cpus)?;
    agrees(&xl, "max_cpu_id", info.max_cpu_id)?;
    agrees(&xl, "nr_nodes", info.nodes)?;
    agrees(&xl, "cores_per_socket", info.cores_per_socket)?;
    agrees(&xl, "threads_per_core", info.threads_per_core)?;
    let mhz = format!("{}.{:03}", info.cpu_khz / 1000, info.cpu_khz % 1000);
    agrees(&xl, "cpu_mhz", mhz)?;
    let words: Vec<String> = info.hw_caps.iter().map(|w| format!("{w:08x}")).collect();
    agrees(&xl, "hw_caps", words.join(":"))?;
    agrees(&xl, "total_memory", info.total_bytes() >> 20)?;
    let free = (info.free_pages - info.outstanding_pages) >> 8;
    let said: u64 = xl["free_memory"].parse()?;
    ensure!(said.abs_diff(free) <= 1, "free: xl says {said}, we {free}");
    let topology = privcmd.cpu_topology()?;
    for (cpu, place) in topology.iter().enumerate() {
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        let said = xl
            .get(&cpu.to_string())
            .with_context(|| format!("xl has no CPU {cpu}"))?;
        let said: Vec<&str> = said.split_whitespace().collect();
        let ours = [place.core, place.socket, place.node].map(number);
        // Node 0's memory has the same number before the colon and overwrites CPU 0.
        ensure!(cpu == 0 || said == ours, "CPU {cpu}: xl {said:?}, {ours:?}");
    }
    ensure!(topology.len() as u32 >= info.cpus);
    let nodes = privcmd.numa_memory()?;
    ensure!(nodes.len() as u32 == info.nodes, "{nodes:?}");
    let node = nodes[0].context("node 0 is offline")?;
    let said: Vec<u64> = xl["0"]
        .split_whitespace()
        .filter_map(|word| word.trim_end_matches(',').parse().ok())
        .collect();
    ensure!(
        said.first() == Some(&(node.bytes >> 20)),
        "node 0: xl says {said:?}, we {node:?}"
    );
    Ok(())
}

fn console_ring(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let text = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        text.lines().map(|l| l.trim_end().to_owned()).collect()
    };
    let ours = text(&privcmd.console_ring()?);
    let xl = command(&["xl", "dmesg"])?;
    let xl: Vec<&str> = xl.iter().map(|line| line.trim_end()).collect();
    // Xen may have printed something in between. A ring that was cleared has a few lines only.
    let lengths = (ours.len(), xl.len());
    ensure!(lengths.0 > 1 && lengths.1 >= lengths.0, "{lengths:?}");
    for (i, (ours, xl)) in ours.iter().zip(&xl).enumerate() {
        ensure!(ours == xl, "line {i}: xl says `{xl}`, we `{ours}`");
    }
    let mut chunk = privcmd.console_ring_from(0)?;
    // The debug key for help is answered on the console.
    command(&["xl", "debug-keys", "h"])?;
    let deadline = soon();
    loop {
        let more = privcmd.console_ring_from(chunk.next)?;
        if text(&more.bytes)
            .iter()
            .any(|line| line.contains("'h' pressed"))
        {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "no answer to the debug key"
        );
        chunk.next = more.next;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn no_domain(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let none = DomId::new(0x7000);
    for error in [
        privcmd.domain_info(none).map(drop),
        privcmd.domain_info(DomId::INVALID).map(drop),
        privcmd.pause(none),
        privcmd.unpause(none),
        privcmd.destroy(none),
        privcmd.shutdown(none, ShutdownReason::CRASH),
        privcmd.set_max_memory(none, 1 << 20),
        privcmd.vcpu_info(none, 0).map(drop),
        privcmd.hvm_param(none, HvmParam::STORE_PFN).map(drop),
        privcmd.port_status(none, Port::new(1)).map(drop),
        privcmd.grant_table_size(none).map(drop),
        privcmd.maximum_gpfn(none).map(drop),
    ] {
        match error {
            Err(Error::NoDomain { .. }) => {}
            other => bail!("{other:?}"),
        }
    }
    let infos = privcmd.domain_infos(&[none, DomId::DOM0, none])?;
    ensure!(infos[0].is_err() && infos[1].is_ok() && infos[2].is_err());
    let state = privcmd.domain_state(DomId::DOM0);
    ensure!(
        matches!(state, Err(Error::Unsupported { .. })) || host_release() >= (4, 21),
        "{state:?}"
    );
    Ok(())
}

/// A domain's line of `xl list`, as we would print it; the time is apart.
fn line(info: &DomainInfo) -> (Vec<String>, u64) {
    let state: String = [
        (DomainFlags::RUNNING, 'r'),
        (DomainFlags::BLOCKED, 'b'),
        (DomainFlags::PAUSED, 'p'),
        (DomainFlags::SHUTDOWN, 's'),
    ]
    .iter()
    .map(|&(flag, letter)| {
        if info.flags.contains(flag) {
            letter
        } else {
            '-'
        }
    })
    .collect();
    let memory = (info.pages + info.outstanding_pages) >> 8;
    let words = vec![
        info.id.to_string(),
        memory.to_string(),
        info.online_vcpus.to_string(),
        state,
    ];
    (words, info.cpu_time.as_secs())
}

/// `xl list`, with the names left out.
fn xl_list() -> Result<Vec<(Vec<String>, u64)>> {
    let lines = command(&["xl", "list"])?;
    let parse = |line: &String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, id, memory, vcpus, state, time] = words[..] else {
            bail!("`xl list` says `{line}`");
        };
        let state = state[..4].to_owned();
        let words = vec![id.into(), memory.into(), vcpus.into(), state];
        Ok((words, time.parse::<f64>()? as u64))
    };
    lines.iter().skip(1).map(parse).collect()
}

fn domains(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let mut last = String::new();
    // Domains run and block while they are looked at: several tries.
    for _ in 0..20 {
        let xl = xl_list()?;
        let ours = privcmd.domains()?;
        let ids: Vec<DomId> = ours.iter().map(|info| info.id).collect();
        let singly = privcmd.domain_infos(&ids)?;
        for (info, single) in ours.iter().zip(singly) {
            let single = single?;
            ensure!((single.id, single.handle) == (info.id, info.handle));
        }
        let ours: Vec<_> = ours.iter().map(line).collect();
        let same = ours.len() == xl.len()
            && ours
                .iter()
                .zip(&xl)
                .all(|(a, b)| a.0 == b.0 && a.1.abs_diff(b.1) <= 1);
        if same {
            let vm_list = command(&["xl", "vm-list"])?.join("\n");
            let pv = privcmd.domain_info(guest::domid(DOMU_NAME)?)?;
            ensure!(vm_list.contains(&pv.handle.to_string()), "{vm_list}");
            return Ok(());
        }
        last = format!("xl: {xl:?}\nwe: {ours:?}");
    }
    bail!("{last}")
}

fn vcpu(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    let info = privcmd.vcpu_info(domu, 0)?.context("no virtual CPU")?;
    let xl = command(&["xl", "vcpu-list", DOMU_NAME])?;
    let words: Vec<&str> = xl.get(1).context("no line")?.split_whitespace().collect();
    let time: f64 = words.get(5).context("no time")?.parse()?;
    let ours = info.cpu_time.as_secs_f64();
    ensure!(
        info.online && (ours - time).abs() < 1.0,
        "xl {xl:?}, we {info:?}"
    );
    ensure!(privcmd.vcpu_info(domu, 1)?.is_none());
    Ok(())
}

fn state_of(domid: DomId) -> Result<String> {
    let list = xl_list()?;
    let found = list.into_iter().find(|(w, _)| w[0] == domid.to_string());
    Ok(found.context("not in `xl list`")?.0[3].clone())
}

fn pause(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    privcmd.pause(domu)?;
    let paused = state_of(domu);
    let ours = privcmd.domain_info(domu);
    privcmd.unpause(domu)?;
    ensure!(paused?.contains('p'));
    ensure!(ours?.flags.contains(DomainFlags::PAUSED));
    ensure!(!state_of(domu)?.contains('p'));
    for error in [privcmd.unpause(domu), privcmd.pause(DomId::DOM0)] {
        let errno = error.as_ref().err().and_then(Error::errno);
        ensure!(errno == Some(22), "{error:?}");
    }
    Ok(())
}

fn max_memory(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    let before = privcmd.domain_info(domu)?;
    ensure!(privcmd.maximum_pages(domu)? == before.max_pages);
    ensure!(privcmd.current_pages(domu)? == before.pages);
    privcmd.set_max_memory(domu, 256 << 20)?;
    let during = privcmd.domain_info(domu);
    privcmd.set_max_memory(domu, before.max_pages << 12)?;
    ensure!(during?.max_pages == 65536);
    ensure!(privcmd.domain_info(domu)?.max_pages == before.max_pages);
    ensure!(privcmd.maximum_gpfn(domu)? > 0);
    Ok(())
}

fn ports_and_grants(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    ensure!(privcmd.own_domain()? == DomId::DOM0);
    ensure!(host.store.own_domain()? == DomId::DOM0);
    let port = host
        .store
        .read_str(&format!("/local/domain/{domu}/store/port"))?;
    let status = privcmd.port_status(domu, port.trim().parse()?)?;
    let PortState::Interdomain { remote, port: far } = status.state else {
        bail!("the store's port is {status:?}");
    };
    ensure!(remote == DomId::DOM0, "{status:?}");
    // The other end has the same binding to this one.
    let back = privcmd.port_status(DomId::DOM0, far)?;
    ensure!(
        matches!(back.state, PortState::Interdomain { remote, .. } if remote == domu),
        "{back:?}"
    );
    let size = privcmd.grant_table_size(domu)?;
    ensure!(
        size.frames > 0 && size.frames <= size.max_frames,
        "{size:?}"
    );
    Ok(())
}

fn shutdown(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    privcmd.pause(domu)?;
    privcmd.shutdown(domu, ShutdownReason::POWEROFF)?;
    let info = privcmd.domain_info(domu);
    host.lost_domu(Place::DomU)?;
    // The toolstack may have been faster than the question.
    if let Ok(info) = info {
        let dying = info.flags.contains(DomainFlags::DYING);
        let reason = info.shutdown;
        ensure!(
            dying || reason == Some(ShutdownReason::POWEROFF),
            "{info:?}"
        );
    }
    Ok(())
}

fn destroy(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    privcmd.destroy(domu)?;
    let after = privcmd.domain_info(domu);
    ensure!(
        match &after {
            Ok(info) => info.flags.contains(DomainFlags::DYING),
            Err(error) => matches!(error, Error::NoDomain { .. }),
        },
        "{after:?}"
    );
    forget(host, domu)?;
    host.lost_domu(Place::DomU)
}

/// Removes from the store what the toolstack keeps of a domain that it did not destroy itself.
fn forget(host: &TestHost, domain: DomId) -> Result<()> {
    let store = &host.store;
    let devices = format!("/libxl/{domain}/device");
    for kind in store.directory(&devices)? {
        for number in store.directory(&format!("{devices}/{kind}"))? {
            let backend = store.read_str(&format!("{devices}/{kind}/{number}/backend"))?;
            store.rm(&backend)?;
            // The folder of the domain's devices of this kind, if this was the last.
            let folder = backend.rsplit_once('/').context("a backend's path")?.0;
            if store.directory(folder)?.is_empty() {
                store.rm(folder)?;
            }
        }
    }
    let home = format!("/local/domain/{domain}");
    let vm = store.read_str(&format!("{home}/vm"))?;
    for path in [vm, format!("/libxl/{domain}"), home] {
        store.rm(&path)?;
    }
    Ok(())
}

fn hvm_params(host: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let hvm = guest::domid("hvm")?;
    let read = |node: &str| -> Result<u64> {
        let text = host
            .store
            .read_str(&format!("/local/domain/{hvm}/{node}"))?;
        Ok(text.trim().parse()?)
    };
    let param = |param| privcmd.hvm_param(hvm, param);
    let port = param(HvmParam::STORE_EVTCHN)?;
    ensure!(port == read("store/port")?, "store port {port}");
    let frame = param(HvmParam::STORE_PFN)?;
    ensure!(frame == read("store/ring-ref")?, "store frame {frame}");
    let status = privcmd.port_status(hvm, Port::new(port as u32))?;
    ensure!(
        matches!(status.state, PortState::Interdomain { remote, .. } if remote == DomId::DOM0),
        "{status:?}"
    );
    let reason = param(HvmParam::TRIPLE_FAULT_REASON)?;
    privcmd.set_hvm_param(hvm, HvmParam::TRIPLE_FAULT_REASON, 3)?;
    let set = param(HvmParam::TRIPLE_FAULT_REASON);
    privcmd.set_hvm_param(hvm, HvmParam::TRIPLE_FAULT_REASON, reason)?;
    ensure!(set? == 3);
    // Xen lets the toolstack set these once.
    let pages = param(HvmParam::NR_IOREQ_SERVER_PAGES)?;
    let again = privcmd.set_hvm_param(hvm, HvmParam::NR_IOREQ_SERVER_PAGES, pages + 1);
    let errno = again.as_ref().err().and_then(Error::errno);
    ensure!(errno == Some(17) || errno == Some(22), "{again:?}");
    let of_pv = privcmd.hvm_param(guest::domid("hvm-dm")?, HvmParam::STORE_PFN);
    let errno = of_pv.as_ref().err().and_then(Error::errno);
    ensure!(errno == Some(22), "of a PV domain: {of_pv:?}");
    let info = privcmd.domain_info(hvm)?;
    ensure!(info.flags.contains(DomainFlags::HVM), "{info:?}");
    ensure!(privcmd.maximum_gpfn(hvm)? >= info.pages, "{info:?}");
    Ok(())
}

/// QEMU's processor has no EPT, so Xen has no views.
fn altp2m(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let views = privcmd.altp2m(guest::domid("hvm")?);
    for error in [
        views.enabled().map(drop),
        views.set_enabled(true),
        views.create_view(MemoryAccess::Default).map(drop),
        views.access(ViewId::HOST, 0).map(drop),
    ] {
        ensure!(
            matches!(error, Err(Error::Unsupported { op }) if op.starts_with("HVMOP_altp2m_")),
            "{error:?}"
        );
    }
    Ok(())
}

fn refused(host: &TestHost, kind: &str) -> Result<()> {
    let mut job = host.role(Place::DomU, &["hypercalls"])?;
    job.succeed(soon())?;
    let lines = job.lines()?;
    let said: Vec<_> = lines.iter().filter_map(|l| l.split_once(": ")).collect();
    ensure!(said.len() == 6, "{lines:?}");
    for (call, said) in said {
        // Any domain may read the hypervisor's version and its own number, if its kernel lets it.
        let expected = match (call, kind) {
            ("xen_version" | "own_domain", "not permitted") => "ok",
            _ => kind,
        };
        ensure!(said == expected, "{call}: {said}; expected {expected}");
    }
    Ok(())
}
