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
pub fn pool(hidden: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
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

/// Replaces hidden states `[positions, width]` by their gradients, given that of what [`pool`] makes of them.
pub fn pool_gradient(hidden: &mut [f32], g: &[f32], pooling: Pooling) {
    let width = g.len().max(1);
    let count = hidden.len() / width;
    if pooling == Pooling::Max {
        for (feature, g) in g.iter().enumerate() {
            let mut column = (0..count).map(|row| hidden[row * width + feature]).enumerate();
            let first = column.next().unwrap_or_default();
            let (best, _) = column.fold(first, |best, next| if next.1 > best.1 { next } else { best });
            (0..count).for_each(|row| hidden[row * width + feature] = if row == best { *g } else { 0.0 });
        }
        return;
    }
    for (row, hidden) in hidden.chunks_exact_mut(width).enumerate() {
        let share = match pooling {
            Pooling::Mean => 1.0 / count as f32,
            Pooling::LastToken => f32::from(u8::from(row + 1 == count)),
            Pooling::Cls | Pooling::Max => f32::from(u8::from(row == 0)),
        };
        hidden.iter_mut().zip(g).for_each(|(x, g)| *x = share * g);
    }
}

/// Replaces the gradient of a vector of length one by that of the vector that [`normalise`] made it of; zero for one of zeros.
pub fn normalise_gradient(vector: &[f32], g: &mut [f32]) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let squares = dot(vector, vector);
    let along = if squares > 0.0 { dot(vector, g) / squares } else { 0.0 };
    let scale = if squares > 0.0 { 1.0 / squares.sqrt() } else { 0.0 };
    g.iter_mut().zip(vector).for_each(|(g, x)| *g = ((f64::from(*g) - along * f64::from(*x)) * scale) as f32);
}
