//! What has to be known of a whole weight before any of it is encoded: the largest of each column, found in a first pass over
//! its bands.

use std::sync::Mutex;

use formats::Dtype;

use super::{Bands, Result, lock, prune};
use crate::job::Job;
use crate::loader::{Scratch, View};
use crate::quantizer::{Columnar, Int8Cols, Numbers, Quantizer};
use crate::recipe::{Plan, Treatment};

/// Makes the quantizers of steps whose scales are those of columns. The largest of two is the same in any order, so that threads
/// and bands cannot change them.
pub fn columns(plan: &Plan, bands: &Bands, views: &mut [(View, Option<Box<dyn Quantizer>>)], job: &Job) -> Result<()> {
    let wanted: Vec<usize> =
        (0..bands.len()).filter(|&i| plan.steps[bands.get(i).0].treatment == Treatment::Int8Cols).collect();
    let surveys: Vec<Mutex<Columnar>> = plan
        .steps
        .iter()
        .map(|step| Mutex::new(Columnar::new(if step.treatment == Treatment::Int8Cols { step.cols } else { 0 })))
        .collect();
    let read: &[(View, _)] = views;
    job.pool.try_map(wanted.len(), |i| {
        job.cancel.check()?;
        let (s, lines) = bands.get(wanted[i]);
        let (step, view) = (&plan.steps[s], &read[s].0);
        let count = (lines.end - lines.start) as usize * step.cols as usize;
        let mut here = Columnar::new(step.cols);
        if step.input == Dtype::F64 {
            let mut numbers = vec![0f64; count];
            view.try_read(lines.start as usize, &mut numbers, &mut Scratch::default())?;
            prune::apply(step, lines.start, &mut numbers);
            here.add(Numbers::F64(&numbers));
        } else {
            let mut numbers = vec![0f32; count];
            view.try_read(lines.start as usize, &mut numbers, &mut Scratch::default())?;
            prune::apply(step, lines.start, &mut numbers);
            here.add(Numbers::F32(&numbers));
        }
        lock(&surveys[s]).merge(&here);
        Ok::<_, super::Error>(())
    })?;
    for ((step, survey), (_, quantizer)) in plan.steps.iter().zip(surveys).zip(views) {
        if step.treatment == Treatment::Int8Cols {
            let survey = survey.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            *quantizer = Some(Box::new(Int8Cols::new(&survey, step.input)));
        }
    }
    Ok(())
}
