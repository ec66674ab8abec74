//! The saved state of a machine's devices, as QEMU writes it: a stream of sections, and at its end a description of them in
//! JSON (QEMU: docs/devel/migration, migration/savevm.c). Two things are looked at: whether the processor was at rest, and
//! what the host's clock left there.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Begins a stream: `QEVM`, and the version of its format.
const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
/// Before the description's length and its text.
const DESCRIPTION: u8 = 0x06;
/// Before a section that is complete.
const FULL: u8 = 0x04;

/// The host's time at the pause (`TimersState` of softmmu/cpu-timers.c). The guest's clock counts instructions
/// (`qemu_icount`, in a part of its own), and neither of these reaches it.
const HOST_TIMES: [(&str, &str); 2] = [("timer", "cpu_ticks_offset"), ("timer", "cpu_clock_offset")];

/// What a processor that waits for an interrupt has in its state, and that none is pending.
const AT_REST: [(&str, &str, u32); 2] = [("cpu_common", "halted", 1), ("cpu_common", "interrupt_request", 0)];

#[derive(Debug, Deserialize)]
struct Description {
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    instance_id: u32,
    #[serde(default)]
    fields: Vec<Field>,
}

#[derive(Debug, Deserialize)]
struct Field {
    name: String,
    size: usize,
    array_len: Option<usize>,
}

/// Where a field is in the stream.
type Place = std::ops::Range<usize>;

/// The processor was not at rest when the machine was paused: its state depends on the host's threads.
#[derive(Debug, thiserror::Error)]
#[error("the guest was not idle when it was paused: {field} is {value}, not {rest}")]
pub(crate) struct NotAtRest {
    field: &'static str,
    value: u32,
    rest: u32,
}

impl NotAtRest {
    #[cfg(test)]
    pub(crate) fn of(field: &'static str, value: u32, rest: u32) -> Self {
        Self { field, value, rest }
    }
}

/// Makes a saved state of virtual time the same for every host: zeros what is the host's time in it.
///
/// # Errors
/// [`NotAtRest`]; a stream that is not as described, or a file that can't be read or written.
pub(crate) fn make_steady(path: &Path) -> Result<()> {
    let mut stream = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    steady(&mut stream).with_context(|| format!("the state that QEMU wrote to {}", path.display()))?;
    std::fs::write(path, stream).with_context(|| format!("write {}", path.display()))
}

fn steady(stream: &mut [u8]) -> Result<()> {
    let description = describe(stream)?;
    for (device, field, rest) in AT_REST {
        let place = find(stream, &description, device, field)?;
        let bytes = stream.get(place).and_then(|bytes| bytes.try_into().ok());
        let value = u32::from_be_bytes(bytes.with_context(|| format!("{field} is not 4 bytes long"))?);
        if value != rest {
            return Err(NotAtRest { field, value, rest }.into());
        }
    }
    for (device, field) in HOST_TIMES {
        let place = find(stream, &description, device, field)?;
        stream.get_mut(place).context("the stream is cut short")?.fill(0);
    }
    Ok(())
}

/// The description, which is the last thing in a stream: its length before it fits what is left. That its bytes occur
/// elsewhere too does no harm.
fn describe(stream: &[u8]) -> Result<Description> {
    if !stream.starts_with(MAGIC) {
        bail!("it does not begin as a stream of version 3");
    }
    let starts = (0..stream.len()).rev().filter(|&at| stream[at] == DESCRIPTION);
    for at in starts {
        let Some((length, text)) = stream[at + 1..].split_at_checked(4) else { continue };
        let length = u32::from_be_bytes(length.try_into().expect("4 bytes"));
        if usize::try_from(length) == Ok(text.len())
            && let Ok(description) = serde_json::from_slice(text)
        {
            return Ok(description);
        }
    }
    bail!("it has no description at its end: QEMU's option suppress-vmdesc must be off")
}

/// A field of a device. Its section begins with the device's name and number; what comes before a field in the section is
/// what the description says of the fields before.
fn find(stream: &[u8], description: &Description, device: &str, field: &str) -> Result<Place> {
    let what = || format!("{field} of {device}");
    let described = description
        .devices
        .iter()
        .find(|one| one.name == device)
        .with_context(|| format!("no {}", what()))?;
    // The number of the section is before the name, and its version after.
    let mut header = vec![u8::try_from(device.len()).context("a name of a device")?];
    header.extend(device.as_bytes());
    header.extend(described.instance_id.to_be_bytes());
    let begins = |at: &usize| {
        stream[*at..].starts_with(&header) && at.checked_sub(5).is_some_and(|type_at| stream[type_at] == FULL)
    };
    let mut found = (0..stream.len()).filter(begins);
    let (Some(at), None) = (found.next(), found.next()) else {
        bail!("the section of {device} is not there once");
    };
    let mut start = at + header.len() + 4;
    for one in &described.fields {
        let size = one.size * one.array_len.unwrap_or(1);
        if one.name == field {
            return Ok(start..start + size);
        }
        start += size;
    }
    bail!("no {}", what())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of two devices, with the bytes of one in the middle of another section.
    fn stream(halted: u32, pending: u32) -> Vec<u8> {
        let mut stream = MAGIC.to_vec();
        let mut section = |id: u32, name: &str, data: &[u8]| {
            stream.push(FULL);
            stream.extend(id.to_be_bytes());
            stream.push(u8::try_from(name.len()).expect("short"));
            stream.extend(name.as_bytes());
            stream.extend([0_u32.to_be_bytes(), 1_u32.to_be_bytes()].concat());
            stream.extend(data);
            stream.push(0x7e);
            stream.extend(id.to_be_bytes());
        };
        section(1, "timer", &[[7_u8; 8], [8; 8], [9; 8]].concat());
        section(2, "other", b"...\x05timer\0\0\0\0...");
        section(3, "cpu_common", &[halted.to_be_bytes(), pending.to_be_bytes()].concat());
        let field = |name: &str, size: usize| serde_json::json!({ "name": name, "size": size, "type": "x" });
        let device = |name: &str, fields: Vec<serde_json::Value>| serde_json::json!({ "name": name, "instance_id": 0, "version": 1, "fields": fields });
        let description = serde_json::json!({ "page_size": 4096, "devices": [
            device("timer", vec![field("cpu_ticks_offset", 8), field("unused", 8), field("cpu_clock_offset", 8)]),
            serde_json::json!({ "name": "other", "instance_id": 0, "version": 1 }),
            device("cpu_common", vec![field("halted", 4), field("interrupt_request", 4)]),
        ]});
        let text = description.to_string();
        stream.push(DESCRIPTION);
        stream.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
        stream.extend(text.as_bytes());
        stream
    }

    #[test]
    fn the_hosts_times_are_zeroed_and_nothing_else() {
        let before = stream(1, 0);
        let mut after = before.clone();
        steady(&mut after).expect("a stream");
        let changed: Vec<u8> =
            before.iter().zip(&after).filter(|(one, other)| one != other).map(|(one, _)| *one).collect();
        assert_eq!(changed, [[7; 8], [9; 8]].concat());
        let once = after.clone();
        steady(&mut after).expect("a stream");
        assert_eq!(once, after);
    }

    #[test]
    fn a_processor_that_is_not_at_rest_is_told() {
        for (halted, pending, words) in
            [(0, 0, "halted is 0, not 1"), (1, 2, "interrupt_request is 2, not 0")]
        {
            let error = steady(&mut stream(halted, pending)).expect_err(words);
            assert!(error.is::<NotAtRest>(), "{error:#}");
            assert!(error.to_string().ends_with(words), "{error:#}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_an_error_and_no_panic() {
        let whole = stream(1, 0);
        for length in 0..whole.len() {
            let error = steady(&mut whole[..length].to_vec()).expect_err("cut short");
            assert!(!error.is::<NotAtRest>(), "{length}: {error:#}");
        }
    }
}
