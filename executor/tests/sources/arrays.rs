//! Arrays of elements.

use sstep_autodiff::{DType, Region, Shape, Span};
use sstep_executor::source::{ArraySource, SourceError};

use crate::common::{map, read};

#[test]
fn arrays_of_any_rank_are_read_by_region() {
    let shapes: [&[usize]; 3] = [&[9], &[5, 7], &[3, 4, 6]];
    for spatial in shapes {
        let shape = Shape::map(2, 3, spatial);
        let data: Vec<f64> = (0..shape.elems()).map(|i| i as f64).collect();
        let source = ArraySource::new(shape, data.clone()).unwrap();
        let ty = map(shape, DType::F64);
        assert_eq!(read::<f64>(&source, &Region::whole(&ty)).unwrap(), data);
        // The last element of each axis: one value per channel.
        let mut last = Region::whole(&ty);
        for axis in 0..last.n_axes() {
            let hi = last.span(axis).hi;
            last.set(axis, Span::new(hi - 1, hi));
        }
        let points: usize = spatial.iter().product();
        let wanted: Vec<f64> = (4..=6).map(|k| (k * points - 1) as f64).collect();
        assert_eq!(read::<f64>(&source, &last).unwrap(), wanted);
        last.set(1, Span::new(0, spatial[0] + 1));
        assert!(matches!(
            read::<f64>(&source, &last),
            Err(SourceError::Outside { .. })
        ));
    }
}

#[test]
fn an_array_needs_a_map_and_all_its_elements() {
    for (shape, n) in [(Shape::map(1, 2, &[3]), 5), (Shape::new(&[2, 3]), 6)] {
        let error = ArraySource::new(shape, vec![0f32; n]).unwrap_err();
        assert!(error.to_string().contains(&n.to_string()), "{error}");
    }
}
