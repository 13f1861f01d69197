//! The state of virtual CPUs and of HVM guests, against what Xen's own programs print of a guest
//! that is paused.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use xen_sys::hvm_save::{Cpu, Record, Records};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Error};

use super::hypercalls::privcmd;
use crate::guest;
use crate::host::{Place, TestHost, command};

/// Runs `body` while a domain is paused.
fn paused<T>(privcmd: &Privcmd, domain: DomId, body: impl FnOnce() -> Result<T>) -> Result<T> {
    privcmd.pause(domain)?;
    let result = body();
    privcmd.unpause(domain)?;
    result
}

/// Numbers behind names, as in `rip 0xfff0` or `rip: fff0`, of the lines of a program.
fn named_numbers(lines: &[String]) -> HashMap<String, u64> {
    let mut numbers = HashMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let hex = pair[1].trim_end_matches(',').trim_start_matches("0x");
            if let Ok(number) = u64::from_str_radix(hex, 16) {
                let name = pair[0].trim_end_matches(':');
                numbers.entry(name.to_owned()).or_insert(number);
            }
        }
    }
    numbers
}

fn agree(said: &HashMap<String, u64>, ours: &[(&str, u64)]) -> Result<()> {
    for &(name, ours) in ours {
        let said = said.get(name).with_context(|| format!("no {name}"))?;
        ensure!(*said == ours, "{name}: {said:#x}, we {ours:#x}");
    }
    Ok(())
}

/// The lines `Entry 3: type 2 instance 0, length 1024` of xen-hvmctx, as kind, instance, length.
fn entries(lines: &[String]) -> Vec<[u64; 3]> {
    let entry = |line: &String| {
        let rest = line.strip_prefix("Entry ")?;
        let words: Vec<&str> = rest.split([' ', ',']).collect();
        let after = |name| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse().ok()
        };
        Some([after("type")?, after("instance")?, after("length")?])
    };
    lines.iter().filter_map(entry).collect()
}

/// A changed register is printed by xen-hvmctx, and the guest continues with the old one.
pub(super) fn set_vcpu_context(_: &TestHost) -> Result<()> {
    let (privcmd, hvm) = (privcmd()?, guest::domid(guest::NAME)?);
    paused(&privcmd, hvm, || {
        let before = privcmd.vcpu_context(hvm, 0)?.context("no context")?;
        let mut changed = before.clone();
        changed.user_regs.r15 = 0x1234_5678_9abc;
        privcmd.set_vcpu_context(hvm, 0, &changed)?;
        let seen = command(&["xen-hvmctx", &hvm.to_string()]);
        let again = privcmd.vcpu_context(hvm, 0);
        privcmd.set_vcpu_context(hvm, 0, &before)?;
        let rip = before.user_regs.rip;
        agree(
            &named_numbers(&seen?),
            &[("r15", 0x1234_5678_9abc), ("rip", rip)],
        )?;
        let again = again?.context("no context")?.user_regs;
        ensure!((again.r15, again.rip) == (0x1234_5678_9abc, rip));
        let restored = privcmd.vcpu_context(hvm, 0)?.context("no context")?;
        ensure!(restored.user_regs.r15 == before.user_regs.r15);

        let none = privcmd.set_vcpu_context(hvm, 99, &before);
        ensure!(errno(&none) == Some(22), "{none:?}");
        let own = privcmd.set_vcpu_context(DomId::DOM0, 0, &before);
        ensure!(errno(&own) == Some(22), "{own:?}");
        let gone = privcmd.set_vcpu_context(DomId::new(0x7000), 0, &before);
        ensure!(matches!(gone, Err(Error::NoDomain { .. })), "{gone:?}");
        Ok(())
    })
}

pub(super) fn hvm_context(_: &TestHost) -> Result<()> {
    let (privcmd, hvm) = (privcmd()?, guest::domid(guest::NAME)?);
    paused(&privcmd, hvm, || {
        let context = privcmd.hvm_context(hvm)?;
        let lines = command(&["xen-hvmctx", &hvm.to_string()])?;
        let said = named_numbers(&lines);
        let records: Vec<Record<'_>> = Records::new(&context)?.collect::<Result<_, _>>()?;
        let mut ours: Vec<[u64; 3]> = records
            .iter()
            .map(|r| [r.kind.into(), r.instance.into(), r.body.len() as u64])
            .collect();
        ours.push([0, 0, 0]);
        ensure!(
            entries(&lines) == ours,
            "{:?}, we {ours:?}",
            entries(&lines)
        );
        let header = Records::new(&context)?.header();
        agree(
            &said,
            &[
                ("magic", header.magic.into()),
                ("CPUID[0][%eax]", header.cpuid.into()),
            ],
        )?;
        let khz = format!("gtsc_khz {}", header.gtsc_khz);
        ensure!(lines.iter().any(|line| line.trim() == khz), "{khz}");

        let whole = records.iter().find(|r| r.kind == Record::CPU);
        let cpu = whole.context("no CPU")?.cpu()?.context("no CPU")?;
        agree(&said, &registers(&cpu))?;
        let alone = privcmd.hvm_record(hvm, Record::CPU, 0)?;
        let body = alone.context("no record of the CPU")?;
        let alone = Record::of(Record::CPU, 0, &body).cpu()?.context("no CPU")?;
        ensure!(registers(&alone) == registers(&cpu));
        ensure!(privcmd.hvm_record(hvm, Record::CPU, 9)?.is_none());

        let vcpu = privcmd.vcpu_context(hvm, 0)?.context("no context")?;
        let theirs = (vcpu.user_regs.rip, vcpu.user_regs.rsp, vcpu.ctrlreg[3]);
        ensure!(theirs == (cpu.rip, cpu.rsp, cpu.cr3), "{theirs:x?}");

        // Xen's own program sees a changed register, which is then restored.
        let mut changed = context.clone();
        let dr3 = 0x1234_5678_9abc_u64;
        let base = whole.context("no CPU")?.body.as_ptr().addr() - context.as_ptr().addr();
        let at = base + std::mem::offset_of!(Cpu, dr3);
        changed[at..at + 8].copy_from_slice(&dr3.to_ne_bytes());
        privcmd.set_hvm_context(hvm, &changed)?;
        let seen = named_numbers(&command(&["xen-hvmctx", &hvm.to_string()])?);
        privcmd.set_hvm_context(hvm, &context)?;
        agree(&seen, &[("dr3", dr3), ("rip", cpu.rip)])?;
        let cut = privcmd.set_hvm_context(hvm, &context[..context.len() / 2]);
        privcmd.set_hvm_context(hvm, &context)?;
        ensure!(errno(&cut).is_some(), "{cut:?}");
        Ok(())
    })?;
    let pv = guest::domid("hvm-dm")?;
    ensure!(errno(&privcmd.hvm_context(pv)) == Some(22));
    ensure!(errno(&privcmd.hvm_context(DomId::DOM0)) == Some(22));
    ensure!(errno(&privcmd.hvm_record(hvm, 999, 0)) == Some(22));
    let none = privcmd.hvm_context(DomId::new(0x7000));
    ensure!(matches!(none, Err(Error::NoDomain { .. })), "{none:?}");
    let none = privcmd.set_hvm_context(DomId::new(0x7000), &[0; 16]);
    ensure!(matches!(none, Err(Error::NoDomain { .. })), "{none:?}");
    Ok(())
}

fn errno<T>(result: &xen_sys::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(Error::errno)
}

/// Names that xen-hvmctx prints before a number, with our values.
fn registers(cpu: &Cpu) -> [(&'static str, u64); 40] {
    [
        ("rax", cpu.rax),
        ("rbx", cpu.rbx),
        ("rcx", cpu.rcx),
        ("rdx", cpu.rdx),
        ("rbp", cpu.rbp),
        ("rsi", cpu.rsi),
        ("rdi", cpu.rdi),
        ("rsp", cpu.rsp),
        ("r8", cpu.r8),
        ("r9", cpu.r9),
        ("r10", cpu.r10),
        ("r11", cpu.r11),
        ("r12", cpu.r12),
        ("r13", cpu.r13),
        ("r14", cpu.r14),
        ("r15", cpu.r15),
        ("rip", cpu.rip),
        ("rflags", cpu.rflags),
        ("cr0", cpu.cr0),
        ("cr2", cpu.cr2),
        ("cr3", cpu.cr3),
        ("cr4", cpu.cr4),
        ("dr0", cpu.dr0),
        ("dr1", cpu.dr1),
        ("dr2", cpu.dr2),
        ("dr3", cpu.dr3),
        ("dr6", cpu.dr6),
        ("dr7", cpu.dr7),
        ("cs", cpu.cs_sel.into()),
        // The program prints these two in each other's place.
        ("es", cpu.ds_sel.into()),
        ("ds", cpu.es_sel.into()),
        ("fs", cpu.fs_sel.into()),
        ("ss", cpu.ss_sel.into()),
        ("tr", cpu.tr_sel.into()),
        ("eip", cpu.sysenter_eip),
        ("efer", cpu.msr_efer),
        ("lstar", cpu.msr_lstar),
        ("star", cpu.msr_star),
        ("event", cpu.pending_event.into()),
        ("error", cpu.error_code.into()),
    ]
}

/// A PV guest's registers, as xenctx prints them.
pub(super) fn vcpu_context(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    paused(&privcmd, domu, || {
        let context = privcmd.vcpu_context(domu, 0)?.context("no context")?;
        let said = command(&["xenctx", &domu.to_string(), "0"])?;
        let said = named_numbers(&said);
        let regs = &context.user_regs;
        agree(
            &said,
            &[
                ("rip", regs.rip),
                ("rsp", regs.rsp),
                ("rax", regs.rax),
                ("rbp", regs.rbp),
                ("r12", regs.r12),
                ("r15", regs.r15),
            ],
        )
    })?;
    ensure!(privcmd.vcpu_context(domu, 1)?.is_none());
    let none = privcmd.vcpu_context(DomId::new(0x7000), 0);
    ensure!(matches!(none, Err(Error::NoDomain { .. })), "{none:?}");
    let vcpus = privcmd.domain_info(domu)?.vcpus();
    privcmd.set_max_vcpus(domu, vcpus)?;
    ensure!(errno(&privcmd.set_max_vcpus(domu, vcpus + 1)) == Some(22));
    ensure!(errno(&privcmd.set_max_vcpus(DomId::DOM0, 1)) == Some(22));
    Ok(())
}
