//! Sliding windows against reference values.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::segment::blend::Blender;
use mdm::segment::window::{Importance, WindowGrid};
use support::{Golden, gpus, relative_error};

fn size(case: &serde_json::Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

#[test]
fn windows_weights_and_blending_are_those_of_the_reference() {
    for golden in Golden::all("sliding_window") {
        for (number, case) in golden.meta["cases"].as_array().unwrap().iter().enumerate() {
            let (height, width, window) = (size(case, "height"), size(case, "width"), size(case, "window"));
            let grid = WindowGrid::new(height, width, window, case["overlap"].as_f64().unwrap()).unwrap();
            assert_eq!(grid.count(), size(case, "windows"), "{} {case}", golden.name);
            let padding = [0, 1].map(|i| case["pad_before"][i].as_i64().unwrap());
            let corners: Vec<i64> = grid
                .positions()
                .flat_map(|position| [position.top as i64 + padding[0], position.left as i64 + padding[1]])
                .collect();
            assert_eq!(corners, golden.i64(&format!("{number}.starts")).unwrap(), "{} {case}", golden.name);

            let importance: Vec<f32> = Importance::new(window).row(window / 2).collect();
            let error = relative_error(&importance, &golden.f32(&format!("{number}.importance")).unwrap());
            assert!(error < 1e-6, "{} {case}: importance {error}", golden.name);

            let mut blenders = vec![("host", Blender::new(&grid, 2).unwrap())];
            for (name, _, device) in gpus() {
                blenders.push((name, Blender::on(device.engine(), &grid, 2, 1).unwrap()));
            }
            for (place, mut blender) in blenders {
                let mut blended = Vec::new();
                let mut collect = |row: &[f32]| {
                    blended.extend_from_slice(row);
                    Ok(())
                };
                let mut logits = vec![0.0; window * window * 2];
                for (position, corner) in grid.positions().zip(corners.chunks_exact(2)) {
                    for (i, logit) in logits.iter_mut().enumerate() {
                        let (y, x, class) = (i / 2 / window, i / 2 % window, i % 2);
                        let phase = 0.01 * (corner[0] + 2 * corner[1] + 1) as f64 * (class + 1) as f64;
                        *logit = (phase + 0.02 * y as f64 - 0.03 * x as f64).sin() as f32;
                    }
                    blender.add(position, &logits, &mut collect).unwrap();
                }
                blender.finish(&mut collect).unwrap();
                assert_eq!(blended.len(), height * width * 2);
                let indices = golden.i64(&format!("{number}.blended.index")).unwrap();
                let sampled: Vec<f32> = indices
                    .iter()
                    .map(|&index| {
                        let (class, pixel) =
                            (index as usize / (height * width), index as usize % (height * width));
                        blended[pixel * 2 + class]
                    })
                    .collect();
                let error =
                    relative_error(&sampled, &golden.f32(&format!("{number}.blended.value")).unwrap());
                assert!(error < 1e-5, "{} {case} on {place}: blended {error}", golden.name);
                let ones = blended.chunks_exact(2).filter(|pixel| pixel[1] > pixel[0]).count();
                let want = golden.i64(&format!("{number}.argmax_ones")).unwrap()[0] as usize;
                // Classes whose values differ in the last digits only may fall either way.
                assert!(
                    ones.abs_diff(want) * 20_000 <= height * width,
                    "{} {case} on {place}: {ones}, {want}",
                    golden.name
                );
            }
        }
    }
}
