//! Fits.
#[doc(hidden)]
pub mod bench {
    pub fn go() {
        use crate::fit::matrix::*;
        for r in [256usize,512,1024,4096] {
            for (c,h) in [(288usize,128usize),(128,32),(32,2)] {
                let x=vec![0.5f32;r*c]; let w=vec![0.1f32;h*c]; let mut z=vec![0f32;r*h]; let mut g=vec![0f32;h*c]; let mut dx=vec![0f32;r*c];
                let f=(2*r*c*h) as f64; let n=(2e9/f) as usize+1;
                let mut t=[0f64;3];
                for rep in 0..2 { for (k,t) in t.iter_mut().enumerate() {
                    let s=std::time::Instant::now();
                    for _ in 0..n { match k {
                        0=>product(&mut z,Matrix::new(&x,r,c),Matrix::new(&w,h,c).transposed()),
                        1=>product(&mut g,Matrix::new(&z,r,h).transposed(),Matrix::new(&x,r,c)),
                        _=>product(&mut dx,Matrix::new(&z,r,h),Matrix::new(&w,h,c)),
                    }}
                    *t=f*n as f64/s.elapsed().as_secs_f64()/1e9; let _=rep;
                }}
                println!("{r}x{c}x{h}: forward {:.0} weight {:.0} input {:.0} GFLOP/s",t[0],t[1],t[2]);
            }
        }
    }
}
mod matrix;
