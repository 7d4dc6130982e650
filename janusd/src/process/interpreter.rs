//! By which program a file is run: what the kernel would start for it. Pure over a reader.
//!
//! As `load_elf_binary` and `load_script` do: the first PT_INTERP of an ELF file, the path behind `#!`. A path that is
//! not absolute depends on where the process stands and is not told.

use std::io;

/// Where the bytes come from: fills as much of a buffer as the file has at an offset.
pub trait Header {
    /// Reads at `offset`; short only at the end of the file.
    ///
    /// # Errors
    /// The file's.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Header for &[u8] {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// Bytes of a script's first line that the kernel looks at (`BINPRM_BUF_SIZE`).
const FIRST_LINE: usize = 256;
/// Bytes of program headers that the kernel reads, at most.
const MOST_HEADERS: usize = 65_536;
/// `PATH_MAX`
const LONGEST_PATH: u64 = 4096;
const PT_INTERP: u32 = 3;

/// The interpreter's path; `None`: the file has none.
///
/// # Errors
/// The reader's.
pub fn interpreter(file: &mut dyn Header) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; FIRST_LINE];
    let count = file.read_at(0, &mut head)?;
    let head = &head[..count];
    let path = if head.starts_with(b"#!") { script(head) } else { elf(head, file)? };
    Ok(path.filter(|path| path.starts_with(b"/") && !path.contains(&0)))
}

fn script(head: &[u8]) -> Option<Vec<u8>> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = head.get(2..)?;
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    let line = &line[..end];
    let from = line.iter().position(|byte| !blank(byte))?;
    let path = &line[from..];
    let to = path.iter().position(|byte| blank(byte) || *byte == 0).unwrap_or(path.len());
    // A path that fills the kernel's buffer to its end may be cut off, and is not run.
    let cut_off = to == path.len() && end == FIRST_LINE - 2;
    (to > 0 && !cut_off).then(|| path[..to].to_vec())
}

/// The layout of a class of ELF files: offsets in the file's and in a program header.
struct Layout {
    table: Field,
    entry_size: usize,
    entries: usize,
    entry: usize,
    offset: Field,
    size: Field,
}

#[derive(Clone, Copy)]
struct Field {
    at: usize,
    bytes: usize,
}

impl Field {
    fn read(self, bytes: &[u8], big: bool) -> Option<u64> {
        let bytes = bytes.get(self.at..self.at.checked_add(self.bytes)?)?;
        let fold = |value, byte: &u8| value << 8 | u64::from(*byte);
        Some(if big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
    }
}

const fn at(at: usize, bytes: usize) -> Field {
    Field { at, bytes }
}

/// elf(5): e_phoff, e_phentsize, e_phnum; p_offset, p_filesz.
const ELF64: Layout =
    Layout { table: at(32, 8), entry_size: 54, entries: 56, entry: 56, offset: at(8, 8), size: at(32, 8) };
const ELF32: Layout =
    Layout { table: at(28, 4), entry_size: 42, entries: 44, entry: 32, offset: at(4, 4), size: at(16, 4) };

fn elf(head: &[u8], file: &mut dyn Header) -> io::Result<Option<Vec<u8>>> {
    let (Some(b"\x7fELF"), Some(class), Some(order)) = (head.get(..4), head.get(4), head.get(5)) else {
        return Ok(None);
    };
    let layout = match class {
        1 => &ELF32,
        2 => &ELF64,
        _ => return Ok(None),
    };
    let big = *order == 2;
    let short = |place| at(place, 2).read(head, big).and_then(|value| usize::try_from(value).ok());
    let (Some(table), Some(entry), Some(entries)) =
        (layout.table.read(head, big), short(layout.entry_size), short(layout.entries))
    else {
        return Ok(None);
    };
    if entry != layout.entry || entries == 0 || entries * entry > MOST_HEADERS {
        return Ok(None);
    }
    let mut headers = vec![0; entries * entry];
    let count = file.read_at(table, &mut headers)?;
    let found =
        headers[..count].chunks_exact(entry).find(|header| at(0, 4).read(header, big) == Some(PT_INTERP.into()));
    let Some(header) = found else { return Ok(None) };
    let (Some(offset), Some(size)) = (layout.offset.read(header, big), layout.size.read(header, big)) else {
        return Ok(None);
    };
    if !(2..=LONGEST_PATH).contains(&size) {
        return Ok(None);
    }
    let mut path = vec![0; usize::try_from(size).unwrap_or_default()];
    let count = file.read_at(offset, &mut path)?;
    if count < path.len() || path.last() != Some(&0) {
        return Ok(None);
    }
    let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
    path.truncate(end);
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(bytes: &[u8]) -> Option<String> {
        interpreter(&mut &*bytes).unwrap().map(|path| String::from_utf8_lossy(&path).into_owned())
    }

    /// A file with one PT_NULL, then one PT_INTERP whose path lies at its end.
    fn file(layout: &Layout, big: bool, path: &[u8]) -> Vec<u8> {
        let first = if layout.entry == 56 { 64 } else { 52 };
        let mut bytes = vec![0; first + 2 * layout.entry];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[4] = if layout.entry == 56 { 2 } else { 1 };
        bytes[5] = if big { 2 } else { 1 };
        let mut put = |field: Field, value: u64| {
            for index in 0..field.bytes {
                let shift = if big { field.bytes - 1 - index } else { index } * 8;
                bytes[field.at + index] = (value >> shift) as u8;
            }
        };
        let header = first + layout.entry;
        put(layout.table, first as u64);
        put(at(layout.entry_size, 2), layout.entry as u64);
        put(at(layout.entries, 2), 2);
        put(at(header, 4), PT_INTERP.into());
        put(at(header + layout.offset.at, layout.offset.bytes), (first + 2 * layout.entry) as u64);
        put(at(header + layout.size.at, layout.size.bytes), path.len() as u64);
        bytes.extend(path);
        bytes
    }

    #[test]
    fn programs() {
        for (layout, big) in [(&ELF64, false), (&ELF64, true), (&ELF32, false), (&ELF32, true)] {
            assert_eq!(of(&file(layout, big, b"/lib/ld.so\0")).as_deref(), Some("/lib/ld.so"));
            assert_eq!(of(&file(layout, big, b"/lib/ld.so\0trailing\0")).as_deref(), Some("/lib/ld.so"));
            for odd in [&b"/no-nul"[..], b"\0", b"", b"relative\0", &[b'/'; 5000]] {
                assert_eq!(of(&file(layout, big, odd)), None);
            }
        }
        assert!(of(&std::fs::read("/proc/self/exe").unwrap()).is_none_or(|path| path.starts_with('/')));
        assert!(of(&std::fs::read("/bin/cat").unwrap()).unwrap().contains("/ld"));
    }

    #[test]
    fn scripts() {
        for (text, path) in [
            ("#!/bin/sh\necho", Some("/bin/sh")),
            ("#! \t /bin/sh -e x\n", Some("/bin/sh")),
            ("#!/usr/bin/env python\n", Some("/usr/bin/env")),
            ("#!/bin/sh", Some("/bin/sh")),
            ("#!/bin/sh\0x\n", Some("/bin/sh")),
            ("#!sh\n", None),
            ("#!\n/bin/sh\n", None),
            ("#!   \n", None),
            ("#", None),
            ("", None),
            (" #!/bin/sh\n", None),
        ] {
            assert_eq!(of(text.as_bytes()).as_deref(), path, "{text:?}");
        }
        // The kernel refuses to run what it may have cut off.
        assert_eq!(of(format!("#!/{}", "x".repeat(300)).as_bytes()), None);
        assert_eq!(of(format!("#!/{} y", "x".repeat(200)).as_bytes()), Some(format!("/{}", "x".repeat(200))));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            let path = interpreter(&mut bytes.as_slice()).unwrap();
            prop_assert!(path.is_none_or(|path| path.starts_with(b"/") && path.len() < 4096));
        }

        #[test]
        fn a_damaged_program_ends(at: prop::sample::Index, byte: u8, cut: prop::sample::Index, elf64: bool) {
            let mut bytes = file(if elf64 { &ELF64 } else { &ELF32 }, false, b"/lib/ld.so\0");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = of(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = of(&bytes);
        }
    }
}
