//! TIFF files built byte by byte.

use crate::common::SLIDE;

/// One image of a file built here.
#[derive(Clone)]
pub struct Dir {
    pub size: (u32, u32),
    pub tile: u32,
    pub compression: u16,
    pub photometric: u16,
    pub predictor: u16,
    pub samples: u16,
    pub bits: u16,
    pub planar: u16,
    pub tiled: bool,
    pub tiles: Vec<Vec<u8>>,
    pub tables: Vec<u8>,
    pub subs: Vec<Dir>,
}

impl Dir {
    /// Uncompressed RGB whose samples are counted from tile to tile.
    pub fn rgb(w: u32, h: u32, tile: u32) -> Self {
        let n = w.div_ceil(tile) * h.div_ceil(tile);
        let bytes = tile * tile * 3;
        let tiles = (0..n)
            .map(|t| (0..bytes).map(|i| (i + 31 * t) as u8).collect())
            .collect();
        Dir {
            size: (w, h),
            tile,
            compression: 1,
            photometric: 2,
            predictor: 1,
            samples: 3,
            bits: 8,
            planar: 1,
            tiled: true,
            tiles,
            tables: vec![],
            subs: vec![],
        }
    }
}

/// Byte order and width of offsets.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Classic,
    BigEndian,
    BigTiff,
}

struct Builder {
    form: Kind,
    out: Vec<u8>,
}

impl Builder {
    fn number(&self, value: u64, bytes: usize) -> Vec<u8> {
        let mut le = value.to_le_bytes()[..bytes].to_vec();
        if self.form == Kind::BigEndian {
            le.reverse();
        }
        le
    }

    fn wide(&self) -> usize {
        if self.form == Kind::BigTiff { 8 } else { 4 }
    }

    /// Writes tiles and directory; gives the directory's offset and where its
    /// link to the next lies.
    fn dir(&mut self, dir: &Dir, tiles_last: bool) -> (u64, usize) {
        let subs: Vec<u64> = dir.subs.iter().map(|sub| self.dir(sub, false).0).collect();
        let lengths: Vec<u64> = dir.tiles.iter().map(|t| t.len() as u64).collect();
        let mut offsets: Vec<u64> = Vec::new();
        // Tiles after the directory lie at a round distance.
        let mut at = if tiles_last {
            4096
        } else {
            self.out.len() as u64
        };
        for length in &lengths {
            offsets.push(at);
            at += length;
        }
        if !tiles_last {
            self.out.extend(dir.tiles.concat());
        }
        let one = |v: u32| vec![u64::from(v)];
        let mut tags: Vec<(u16, u16, Vec<u64>)> = vec![
            (256, 4, one(dir.size.0)),
            (257, 4, one(dir.size.1)),
            (258, 3, vec![u64::from(dir.bits); usize::from(dir.samples)]),
            (259, 3, one(dir.compression.into())),
            (262, 3, one(dir.photometric.into())),
        ];
        if !dir.tiled {
            tags.push((273, 4, offsets.clone()));
        }
        tags.push((277, 3, one(dir.samples.into())));
        if !dir.tiled {
            tags.push((278, 4, one(dir.size.1)));
            tags.push((279, 4, lengths.clone()));
        }
        tags.push((284, 3, one(dir.planar.into())));
        tags.push((317, 3, one(dir.predictor.into())));
        if dir.tiled {
            tags.push((322, 4, one(dir.tile)));
            tags.push((323, 4, one(dir.tile)));
            tags.push((
                324,
                if self.form == Kind::BigTiff { 16 } else { 4 },
                offsets,
            ));
            tags.push((325, 4, lengths));
        }
        if !subs.is_empty() {
            tags.push((330, 4, subs));
        }
        if !dir.tables.is_empty() {
            tags.push((347, 7, dir.tables.iter().map(|&b| u64::from(b)).collect()));
        }
        let wide = self.wide();
        let mut entries = Vec::new();
        for (tag, kind, values) in &tags {
            let width = match kind {
                3 => 2,
                7 => 1,
                16 => 8,
                _ => 4,
            };
            let mut bytes: Vec<u8> = values.iter().flat_map(|&v| self.number(v, width)).collect();
            if bytes.len() > wide {
                let at = self.out.len() as u64;
                self.out.extend(bytes);
                bytes = self.number(at, wide);
            }
            bytes.resize(wide, 0);
            entries.extend(self.number(u64::from(*tag), 2));
            entries.extend(self.number(u64::from(*kind), 2));
            entries.extend(self.number(values.len() as u64, wide));
            entries.extend(bytes);
        }
        let here = self.out.len() as u64;
        let count = self.number(tags.len() as u64, if wide == 8 { 8 } else { 2 });
        self.out.extend(count);
        self.out.extend(entries);
        let link = self.out.len();
        self.out.extend(vec![0; wide]);
        if tiles_last {
            self.out.resize(4096, 0);
            self.out.extend(dir.tiles.concat());
        }
        (here, link)
    }
}

/// A whole file. With `tiles_last` (one directory only), tiles end the file.
pub fn build(dirs: &[Dir], form: Kind, tiles_last: bool) -> Vec<u8> {
    let header: &[u8] = match form {
        Kind::Classic => b"II*\0",
        Kind::BigEndian => b"MM\0*",
        Kind::BigTiff => b"II+\0\x08\0\0\0",
    };
    let mut builder = Builder {
        form,
        out: header.to_vec(),
    };
    let wide = builder.wide();
    let mut link = builder.out.len();
    builder.out.extend(vec![0; wide]);
    for dir in dirs {
        let (here, next) = builder.dir(dir, tiles_last);
        let bytes = builder.number(here, wide);
        builder.out[link..link + wide].copy_from_slice(&bytes);
        link = next;
    }
    builder.out
}

/// A small file of that compression: 40 × 24 in tiles of 16, and for JPEG one
/// tile of the real slide.
pub fn sample(compression: u16) -> Vec<u8> {
    let mut dir = Dir::rgb(40, 24, 16);
    dir.compression = compression;
    match compression {
        5 => {
            for tile in &mut dir.tiles {
                *tile = weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
                    .encode(tile)
                    .unwrap();
            }
        }
        7 => {
            // The slide's first tile and its tables (their places in the file
            // are those of the slide's tags 324, 325 and 347).
            let slide = std::fs::read(SLIDE).unwrap();
            let start = slide
                .windows(4)
                .rposition(|w| w == [0xff, 0xd8, 0xff, 0xdb])
                .unwrap();
            let tables_at = slide[1_275_950..]
                .windows(4)
                .position(|w| w == [0xff, 0xd8, 0xff, 0xdb])
                .map(|at| at + 1_275_950)
                .unwrap();
            assert!(tables_at <= start);
            dir = Dir::rgb(240, 240, 240);
            dir.compression = 7;
            dir.tiles = vec![slide[16..16 + 3684].to_vec()];
            dir.tables = slide[tables_at..tables_at + 289].to_vec();
        }
        8 | 32946 => {
            for tile in &mut dir.tiles {
                use std::io::Write;
                let level = flate2::Compression::default();
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(tile).unwrap();
                *tile = encoder.finish().unwrap();
            }
        }
        _ => {}
    }
    build(&[dir], Kind::Classic, false)
}

/// What `Dir::rgb` holds at a place, planar.
pub fn expected(dir: &Dir) -> Vec<u8> {
    let (w, h, t) = (dir.size.0, dir.size.1, dir.tile);
    let value = |c: u32, y: u32, x: u32| {
        let tile = (y / t) * w.div_ceil(t) + x / t;
        ((y % t * t + x % t) * 3 + c + 31 * tile) as u8
    };
    (0..3)
        .flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| value(c, y, x))))
        .collect()
}
