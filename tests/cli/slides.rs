//! Slides: what they say of themselves, and those that cannot be read.

use crate::common::{SLIDE, Scratch, answer, refuse, train};

#[test]
fn info_shows_levels() {
    let text = answer(&["info", SLIDE]);
    assert!(
        text.contains("2220x2967") && text.contains("240x240"),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&answer(&["info", SLIDE, "--json"])).expect("one JSON value");
    assert_eq!(json["levels"][0]["size"], serde_json::json!([2220, 2967]));
    refuse(
        &["info", "/no/such.svs"],
        2,
        &["/no/such.svs", "no such file"],
    );
    refuse(
        &["info", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
        2,
        &["not a TIFF"],
    );
}

#[test]
fn bad_slides() {
    let scratch = Scratch::new("slides");
    let whole = std::fs::read(SLIDE).expect("the slide");
    let with = |data: &str, code, names: &[&str]| {
        let args = [
            "train",
            "--data",
            data,
            "--label",
            "0",
            "--model",
            "streaming-cnn",
        ];
        refuse(&[&args[..], &["--budget", "64MiB"]].concat(), code, names);
    };
    let cut = scratch.write("cut.svs", &whole[..whole.len() / 2]);
    with(&cut, 2, &["cut.svs"]);
    let other = scratch.write("webp.tif", unsupported_tiff());
    with(&other, 2, &["webp.tif", "WebP", "supported are"]);
    with("/no/such.svs", 2, &["/no/such.svs"]);
    refuse(&train(&["--size", "4000x4000"]), 2, &["4000", "2220"]);
    refuse(&train(&["--level", "3"]), 2, &["no level 3"]);
    refuse(&train(&["--label", "2"]), 2, &["label 2"]);
    refuse(&train(&["--model", "unet2d"]), 2, &["a label per pixel"]);
}

/// A tiled TIFF of one WebP tile.
fn unsupported_tiff() -> Vec<u8> {
    let tags: [(u16, u16, u32); 10] = [
        (256, 4, 256),
        (257, 4, 256),
        (258, 3, 8),
        (259, 3, 50001),
        (262, 3, 2),
        (277, 3, 3),
        (322, 4, 256),
        (323, 4, 256),
        (324, 4, 200),
        (325, 4, 16),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((tags.len() as u16).to_le_bytes());
    for (tag, kind, value) in tags {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.resize(216, 0);
    bytes
}
