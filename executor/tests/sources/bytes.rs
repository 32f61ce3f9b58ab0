//! Sources of bytes: their bytes and what these stand for.

use std::sync::Arc;

use proptest::prelude::*;
use sstep_autodiff::{DType, Region, Shape, Span};
use sstep_executor::source::{
    ArraySource, ByteArraySource, ByteScale, Crop, SlideOptions, SlideSource, SourceError,
    StackSource, TileSource,
};
use sstep_kernels::{Layout, Out, Real};

use crate::common::{SLIDE, map, read, rect};

/// The bytes of a region, and the elements that they stand for.
fn read_bytes<T: Real>(source: &dyn TileSource<T>, region: &Region) -> (Vec<u8>, Vec<T>) {
    let bytes = source.bytes().unwrap();
    let layout = Layout::dense(&map(source.shape(), T::DTYPE), region);
    let mut data = vec![0; layout.len];
    bytes
        .read_bytes(region, &mut Out::new(layout, &mut data))
        .unwrap();
    let points = region.points() as usize / region.span(0).len();
    let scales = bytes.scales();
    let value = |(i, &v): (usize, &u8)| scales[i / points % scales.len()].value(v);
    let values = data.iter().enumerate().map(value).collect();
    (data, values)
}

fn slide(x: usize, mean: f64) -> SlideSource {
    let options = SlideOptions {
        crop: Some(Crop {
            x,
            y: 700,
            w: 500,
            h: 300,
        }),
        mean: [mean, 0.5, 0.6],
        std: [0.2, 0.25, 0.1],
        ..SlideOptions::default()
    };
    SlideSource::open(SLIDE, options).unwrap()
}

fn array(shape: Shape, scales: &[ByteScale]) -> ByteArraySource {
    let data = (0..shape.elems()).map(|i| (i * 89 % 256) as u8).collect();
    ByteArraySource::new(shape, data, scales.to_vec()).unwrap()
}

const SCALES: [ByteScale; 2] = [
    ByteScale {
        mean: 0.25,
        std: 0.3,
    },
    ByteScale {
        mean: -1.0,
        std: 7.0,
    },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_slide_is_its_bytes_scaled(
        x in 0usize..500, y in 0usize..300, w in 1usize..400, h in 1usize..300,
    ) {
        let source = slide(900, 0.7);
        let region = rect(x, y, w.min(500 - x), h.min(300 - y));
        let (bytes, doubles) = read_bytes::<f64>(&source, &region);
        let (same, singles) = read_bytes::<f32>(&source, &region);
        prop_assert_eq!(bytes, same);
        prop_assert_eq!(doubles, read::<f64>(&source, &region).unwrap());
        prop_assert_eq!(singles, read::<f32>(&source, &region).unwrap());
    }
}

#[test]
fn an_array_of_bytes_reads_as_one_of_elements() {
    for spatial in [&[9][..], &[5, 7], &[3, 4, 6]] {
        let shape = Shape::map(2, 2, spatial);
        let source = array(shape, &SCALES);
        let whole = Region::whole(&map(shape, DType::F64));
        let (_, values) = read_bytes::<f64>(&source, &whole);
        let elements = ArraySource::new(shape, values).unwrap();
        let mut part = whole;
        part.set(0, Span::new(1, 2));
        part.set(1, Span::new(1, spatial[0] - 1));
        for region in [whole, part] {
            let found = read::<f64>(&source, &region).unwrap();
            assert_eq!(found, read::<f64>(&elements, &region).unwrap());
            assert_eq!(found, read_bytes::<f64>(&source, &region).1);
        }
        part.set(1, Span::new(0, spatial[0] + 1));
        let outside = read::<f64>(&source, &part).unwrap_err();
        assert!(matches!(outside, SourceError::Outside { .. }));
    }
}

#[test]
fn a_batch_has_bytes_if_all_of_it_has_the_same() {
    let stack = |parts: Vec<Arc<dyn TileSource<f32>>>| StackSource::new(parts).unwrap();
    let batch = stack(vec![Arc::new(slide(900, 0.7)), Arc::new(slide(1200, 0.7))]);
    let region = Region::new(&[Span::new(0, 2), Span::new(7, 60), Span::new(100, 310)]);
    let (_, values) = read_bytes::<f32>(&batch, &region);
    assert_eq!(values, read::<f32>(&batch, &region).unwrap());
    // The second alone.
    let region = Region::new(&[Span::new(1, 2), region.span(1), region.span(2)]);
    let (_, values) = read_bytes::<f32>(&batch, &region);
    assert_eq!(values, read::<f32>(&batch, &region).unwrap());
    let unlike = stack(vec![Arc::new(slide(900, 0.7)), Arc::new(slide(900, 0.6))]);
    assert!(unlike.bytes().is_none());
    let shape = Shape::map(1, 2, &[4]);
    let elements = ArraySource::new(shape, vec![0f32; 8]).unwrap();
    let mixed = stack(vec![Arc::new(array(shape, &SCALES)), Arc::new(elements)]);
    assert!(mixed.bytes().is_none());
}

#[test]
fn an_array_of_bytes_needs_all_of_them_and_a_scale_for_each_channel() {
    let shape = Shape::map(1, 2, &[3]);
    let error = |n: usize, scales: &[ByteScale]| {
        let made = ByteArraySource::new(shape, vec![0; n], scales.to_vec());
        made.unwrap_err()
    };
    assert!(matches!(
        error(5, &SCALES),
        SourceError::BadArray { found: 5, .. }
    ));
    let told = error(6, &SCALES[..1]);
    assert!(told.to_string().contains("1 were given"), "{told}");
    let flat = ByteScale {
        mean: 0.0,
        std: 0.0,
    };
    assert!(matches!(
        error(6, &[SCALES[0], flat]),
        SourceError::BadNormalisation { channel: 1, .. }
    ));
}
