; Boot sector of every guest of this lab: reads the 48 sectors behind it to 0x7e00 and jumps there.
bits 16
org 0x7c00
  cli
  xor ax, ax
  mov ds, ax
  mov es, ax
  mov ss, ax
  mov sp, 0x7c00
  sti
  mov [drive], dl
  mov ah, 0x42                  ; extended read: a linear address, no geometry
  mov si, packet
  int 0x13
  jc failed
  jmp 0:0x7e00
failed:
  mov si, message
.next:
  lodsb
  test al, al
  jz .halt
  out 0xe9, al                  ; Xen's debug port: the line shows in `xl dmesg`
  jmp .next
.halt:
  hlt
  jmp .halt
drive: db 0
message: db "DISK READ FAILED", 10, 0
align 4
packet:
  db 16, 0
  dw 48                         ; sectors
  dw 0x7e00, 0                  ; to offset, segment
  dq 1                          ; from
times 446-($-$$) db 0
times 64 db 0
dw 0xaa55
