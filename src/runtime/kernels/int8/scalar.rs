//! The loop that every processor runs, and the one that the others are measured by.

use super::Operands;

pub(super) fn dot(o: Operands<'_>, out: &mut [i32]) {
    for i in 0..o.m {
        let x = &o.x[i * o.k..][..o.k];
        for j in 0..o.n {
            let w = &o.weights[j * o.k..][..o.k];
            let products = x.iter().zip(w).map(|(&a, &b)| i32::from(a) * i32::from(b));
            out[i * o.n + j] = products.fold(0, i32::wrapping_add);
        }
    }
}
