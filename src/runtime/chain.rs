//! Runs a chain of linear layers: y = W_n · act(… act(W_0 x + b_0) …) + b_n.

use std::sync::Arc;

use super::model::{Context, Projection, take_projection};
use super::observer::Observer;
use super::ops::activation;
use super::weights::{Overlay, Place, Weights};
use super::{Activations, Error, Scratch};
use crate::family::{Chain, Slot};
use crate::job::Job;

/// A chain over weights that are taken up when they are needed.
pub struct ChainModel {
    shape: Chain,
    weights: Arc<dyn Weights>,
    overlay: Overlay,
}

/// Rows that go through a layer together.
const ROWS: usize = 1024;

impl ChainModel {
    /// A chain of this shape over these weights.
    pub fn new(shape: Chain, weights: Arc<dyn Weights>) -> Self {
        Self { shape, weights, overlay: Overlay::new() }
    }

    /// The shape.
    pub fn shape(&self) -> &Chain {
        &self.shape
    }

    /// The matrices that take the place of the model's own.
    pub fn overlay_mut(&mut self) -> &mut Overlay {
        &mut self.overlay
    }

    /// The outputs for `inputs` `[rows, features]`, row by row. The observer is told of model number `number`; progress
    /// advances by the rows, for each layer.
    ///
    /// # Errors
    /// Inputs that are no whole number of rows, weights that are missing or cannot be read, or an interruption.
    pub fn predict(
        &self,
        inputs: &[f32],
        number: usize,
        observer: &mut dyn Observer,
        job: &Job,
    ) -> Result<Vec<f32>, Error> {
        let features = self.shape.widths.first().copied().unwrap_or(0);
        if features == 0 || !inputs.len().is_multiple_of(features) {
            return Err(Error::Inputs { length: inputs.len(), features });
        }
        let mut scratch = Scratch::default();
        let mut x = inputs.to_vec();
        let layers = self.shape.widths.len() - 1;
        for (layer, widths) in self.shape.widths.windows(2).enumerate() {
            let (cols, rows) = (widths[0], widths[1]);
            let place = Place::new(Slot::ChainLinear, layer);
            let projection: Projection = take_projection(&*self.weights, &self.overlay, place, rows, cols)?;
            let mut y = vec![0.0; x.len() / cols * rows];
            for (x, y) in x.chunks(ROWS * cols).zip(y.chunks_mut(ROWS * rows)) {
                job.cancel.check()?;
                let mut context = Context { model: number, observer, scratch: &mut scratch, pool: &job.pool };
                projection.forward(&Activations::new(x, cols), y, &mut context);
                if layer + 1 < layers {
                    activation::apply(self.shape.activation, y, &job.pool);
                }
                job.progress.advance((x.len() / cols) as u64);
            }
            x = y;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Rows;
    use crate::family::{Activation, Part};
    use crate::runtime::observer::Unobserved;
    use crate::runtime::testing::Matrix;

    /// The matrices and biases of a chain.
    struct Layers(Vec<(Vec<f32>, usize, Option<Vec<f32>>)>);

    impl Weights for Layers {
        fn matrix(&self, _: Slot, layer: usize, _: Option<usize>) -> Result<Option<Arc<dyn Rows>>, Error> {
            Ok(self.0.get(layer).map(|(data, cols, _)| Arc::new(Matrix::plain(data, *cols)) as Arc<dyn Rows>))
        }

        fn vector(&self, _: Slot, layer: usize, part: Part) -> Result<Option<Vec<f32>>, Error> {
            assert_eq!(part, Part::Bias);
            Ok(self.0[layer].2.clone())
        }
    }

    #[test]
    fn linear_regression_predicts() {
        let chain = Chain { widths: vec![2, 1], activation: Activation::Relu };
        let layers = Layers(vec![(vec![1.0, 0.0], 2, Some(vec![-0.5]))]);
        let model = ChainModel::new(chain, Arc::new(layers));
        let out = model.predict(&[1., 2., 2., 3., -3., 4.], 0, &mut Unobserved, &Job::new(2)).unwrap();
        assert_eq!(out, [0.5, 1.5, -3.5]);
        assert!(matches!(
            model.predict(&[1.0], 0, &mut Unobserved, &Job::new(1)),
            Err(Error::Inputs { length: 1, features: 2 })
        ));
    }

    #[test]
    fn hidden_layers_are_activated_and_the_last_is_not() {
        let chain = Chain { widths: vec![1, 2, 1], activation: Activation::Relu };
        let layers = || vec![(vec![1.0, -1.0], 1, None), (vec![1.0, -3.0], 2, Some(vec![0.25]))];
        let model = ChainModel::new(chain.clone(), Arc::new(Layers(layers())));
        let out = model.predict(&[2.0, -2.0], 0, &mut Unobserved, &Job::new(1)).unwrap();
        assert_eq!(out, [2.25, -5.75]);
        let mut short = layers();
        short[1].0.pop();
        short[1].1 = 1;
        let wrong = ChainModel::new(chain, Arc::new(Layers(short)));
        let error = wrong.predict(&[1.0], 0, &mut Unobserved, &Job::new(1)).unwrap_err();
        assert!(matches!(error, Error::Shape { layer: 1, .. }), "{error}");
        let job = Job::new(1);
        job.cancel.cancel();
        assert!(matches!(model.predict(&[1.0], 0, &mut Unobserved, &job), Err(Error::Interrupted(_))));
    }
}
