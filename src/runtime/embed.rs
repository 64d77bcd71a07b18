//! Embeddings: one vector for a text.

use super::observer::Unobserved;
use super::{Error, Model, walk};
use crate::job::Job;
use crate::loader::Pooling;

/// The embeddings of texts, `[hidden]` each, for each model. Not scaled to length one.
///
/// # Errors
/// Weights that are missing or cannot be read, or an interrupt.
pub fn embed(
    models: &[&Model],
    windows: &[Vec<u32>],
    pooling: Pooling,
    job: &Job,
    stage: &str,
) -> Result<Vec<Vec<Vec<f32>>>, Error> {
    let mut embeddings = vec![Vec::with_capacity(windows.len()); models.len()];
    walk::encode(models, windows, job, stage, &mut Unobserved, |window, hidden| {
        let positions = windows[window].len();
        for (all, hidden) in embeddings.iter_mut().zip(hidden) {
            all.push(pool(hidden, hidden.len() / positions, pooling));
        }
    })?;
    Ok(embeddings)
}

/// One vector of many, `[positions, width]`.
fn pool(hidden: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let rows = || hidden.chunks_exact(width);
    let fold = |start: f32, join: fn(f32, f32) -> f32| {
        let mut all = vec![start; width];
        rows().for_each(|row| all.iter_mut().zip(row).for_each(|(to, &x)| *to = join(*to, x)));
        all
    };
    match pooling {
        Pooling::Cls => rows().next().map(<[f32]>::to_vec).unwrap_or_default(),
        Pooling::LastToken => rows().last().map(<[f32]>::to_vec).unwrap_or_default(),
        Pooling::Max => fold(f32::NEG_INFINITY, f32::max),
        Pooling::Mean => {
            let count = rows().len() as f32;
            fold(0.0, |a, b| a + b).into_iter().map(|sum| sum / count).collect()
        }
    }
}

/// Scales a vector to length one; one of zeros stays.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
