//! The directories at the end of a TIFF file, one per level.
//!
//! Tiles are written as they come and their offsets are known only afterwards,
//! so directories follow the tiles. Whether the file needs 64-bit offsets
//! (BigTIFF) is then known too: the first 16 bytes are kept free for either
//! header.

/// Bytes kept free at the start of the file.
pub(super) const HEADER_BYTES: u64 = 16;

/// What a directory says of one level.
pub(super) struct Level<'a> {
    pub(super) size: (usize, usize),
    pub(super) tile: usize,
    pub(super) compression: u16,
    pub(super) photometric: u16,
    pub(super) differences: bool,
    pub(super) description: Option<&'a str>,
    /// Micrometres per pixel of this level.
    pub(super) mpp: Option<f64>,
    pub(super) jpeg_tables: Option<&'a [u8]>,
    pub(super) offsets: &'a [u64],
    pub(super) lengths: &'a [u64],
}

/// A tag's values.
enum Value<'a> {
    Ascii(&'a str),
    Short(Vec<u16>),
    Long(u32),
    Rational(u32, u32),
    Undefined(&'a [u8]),
    /// As wide as the file's offsets.
    Offsets(&'a [u64]),
}

impl Value<'_> {
    /// Type number, count and bytes.
    fn encode(&self, big: bool) -> (u16, u64, Vec<u8>) {
        match self {
            Value::Ascii(text) => {
                let mut bytes = text.as_bytes().to_vec();
                bytes.push(0);
                (2, bytes.len() as u64, bytes)
            }
            Value::Short(values) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (3, values.len() as u64, bytes)
            }
            Value::Long(value) => (4, 1, value.to_le_bytes().to_vec()),
            Value::Rational(n, d) => (5, 1, [n.to_le_bytes(), d.to_le_bytes()].concat()),
            Value::Undefined(bytes) => (7, bytes.len() as u64, bytes.to_vec()),
            Value::Offsets(values) if big => (
                16,
                values.len() as u64,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
            Value::Offsets(values) => {
                // The caller chose `big` if any offset needs it.
                let bytes = values
                    .iter()
                    .flat_map(|&v| (v as u32).to_le_bytes())
                    .collect();
                (4, values.len() as u64, bytes)
            }
        }
    }
}

/// Bytes that directories will take at most, to tell whether the file stays
/// below 4 GiB.
pub(super) fn bound_bytes(levels: &[Level<'_>]) -> u64 {
    let one = |level: &Level<'_>| {
        let text = level.description.map_or(0, str::len) + level.jpeg_tables.map_or(0, <[u8]>::len);
        1024 + text as u64 + 16 * level.offsets.len() as u64
    };
    levels.iter().map(one).sum()
}

/// The directories, to be written at byte `start` (a multiple of 8), and the
/// header, to be written at byte 0.
pub(super) fn encode(levels: &[Level<'_>], start: u64, big: bool) -> (Vec<u8>, Vec<u8>) {
    let mut out = Vec::new();
    let mut header: Vec<u8> = if big {
        b"II+\0\x08\0\0\0".to_vec()
    } else {
        b"II*\0".to_vec()
    };
    // Where to write the offset of the next directory; `None` is the header.
    let mut link: Option<usize> = None;
    for (index, level) in levels.iter().enumerate() {
        let mut entries = Vec::new();
        for (tag, value) in tags(index, level) {
            let (kind, count, mut bytes) = value.encode(big);
            let field = if big { 8 } else { 4 };
            if bytes.len() > field {
                let at = start + out.len() as u64;
                out.append(&mut bytes);
                align(&mut out);
                bytes = offset_bytes(at, big);
            }
            bytes.resize(field, 0);
            entries.extend_from_slice(&tag.to_le_bytes());
            entries.extend_from_slice(&kind.to_le_bytes());
            entries.extend_from_slice(&offset_bytes(count, big));
            entries.extend_from_slice(&bytes);
        }
        let here = offset_bytes(start + out.len() as u64, big);
        match link {
            None => header.extend_from_slice(&here),
            Some(at) => out[at..at + here.len()].copy_from_slice(&here),
        }
        let n_entries = entries.len() / if big { 20 } else { 12 };
        if big {
            out.extend_from_slice(&(n_entries as u64).to_le_bytes());
        } else {
            out.extend_from_slice(&(n_entries as u16).to_le_bytes());
        }
        out.append(&mut entries);
        link = Some(out.len());
        out.extend_from_slice(&offset_bytes(0, big));
        align(&mut out);
    }
    (out, header)
}

fn offset_bytes(offset: u64, big: bool) -> Vec<u8> {
    if big {
        offset.to_le_bytes().to_vec()
    } else {
        (offset as u32).to_le_bytes().to_vec()
    }
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Tags in ascending order, as TIFF demands.
fn tags<'a>(index: usize, level: &Level<'a>) -> Vec<(u16, Value<'a>)> {
    // Sides are below 2³¹: the writer has checked.
    let side = |n: usize| Value::Long(n as u32);
    let mut tags = vec![
        // A level is a reduced version of the image before it.
        (254, Value::Long(u32::from(index > 0))),
        (256, side(level.size.0)),
        (257, side(level.size.1)),
        (258, Value::Short(vec![8, 8, 8])),
        (259, Value::Short(vec![level.compression])),
        (262, Value::Short(vec![level.photometric])),
    ];
    if let Some(text) = level.description {
        tags.push((270, Value::Ascii(text)));
    }
    tags.push((277, Value::Short(vec![3])));
    if let Some(mpp) = level.mpp {
        // Pixels per centimetre, in hundredths.
        let per_cm = (10_000.0 / mpp * 100.0)
            .round()
            .clamp(1.0, f64::from(u32::MAX)) as u32;
        tags.push((282, Value::Rational(per_cm, 100)));
        tags.push((283, Value::Rational(per_cm, 100)));
    }
    tags.push((284, Value::Short(vec![1])));
    if level.mpp.is_some() {
        tags.push((296, Value::Short(vec![3])));
    }
    tags.push((
        305,
        Value::Ascii(concat!("sstep ", env!("CARGO_PKG_VERSION"))),
    ));
    if level.differences {
        tags.push((317, Value::Short(vec![2])));
    }
    tags.push((322, side(level.tile)));
    tags.push((323, side(level.tile)));
    tags.push((324, Value::Offsets(level.offsets)));
    tags.push((325, Value::Offsets(level.lengths)));
    if let Some(tables) = level.jpeg_tables {
        tags.push((347, Value::Undefined(tables)));
        tags.push((530, Value::Short(vec![2, 2])));
    }
    tags
}
